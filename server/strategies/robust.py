"""Means that a few sites cannot pull away: value by value over the sites, each counted once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.strategies.mean import BLOCK, zeros
from server.strategies.stretch import parts, stretches
from server.update import Updates

_SPACE = 1 << 21
"""Values of all sites at a time."""
Middle = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Sorted values ``[sites, part]`` to one each ``[part]``."""


def median(updates: Updates) -> Tensor:
    """Return the coordinate-wise median of the updates (Yin et al. 2018, definition 1).

    A head row is the median over the sites that annotate its finding; a row nobody annotates gets
    exactly zero. How many studies a site has counts for nothing: it could have made them up.

    >>> from common.adapter import AdapterSchema
    >>> from server.spool import Spool
    >>> from server.update import SiteUpdate
    >>> a, b, c = (SiteUpdate(str(v), 9, np.ones(1), {"w": torch.tensor([v])}) for v in (1.0, 2.0, 1e6))
    >>> median(Spool.of([a, b, c], AdapterSchema((("w", (1,)),))))
    tensor([2.], dtype=torch.float64)

    Returns:
        ``[numel]`` float64 in wire order.

    Raises:
        SchemaError: if there is no update.
    """
    return _coordinate_wise(updates, _middle)


def trimmed_mean(updates: Updates, share: float) -> Tensor:
    """Return the coordinate-wise trimmed mean of the updates (Yin et al. 2018, definition 2).

    Of n sites floor(share n) are left out at either end, of those that annotate the finding in a
    head row; ``share`` is below a half. Otherwise as ``median``.

    Raises:
        SchemaError: if there is no update.
    """
    return _coordinate_wise(updates, partial(_inner_mean, share=share))


def trimmed(sites: int, share: float) -> int:
    """Return how many of some sites are left out at either end.

    >>> trimmed(10, 0.1), trimmed(9, 0.1), trimmed(10, 0.3)
    (1, 0, 3)
    """
    return min(int(share * sites + 1e-9), (sites - 1) // 2)


def _coordinate_wise(updates: Updates, middle: Middle) -> Tensor:
    mean = zeros(updates)
    space = np.empty(0, dtype=np.float32)
    for stretch in stretches(updates.schema):
        weights = stretch.weights(updates.senders)
        for row, (first, last) in enumerate(stretch.each()):
            places = np.flatnonzero(weights[:, row]).tolist()
            if not places:
                continue
            size = max(1, min(BLOCK, _SPACE // len(places)))
            if space.size < len(places) * size:
                space = np.empty(len(places) * size, dtype=np.float32)
            for start, stop in parts(first, last, size):
                part = space[: len(places) * (stop - start)].reshape(len(places), -1)
                for k, place in enumerate(places):
                    part[k] = updates.read(place, start, stop).numpy()
                part.sort(axis=0)
                mean[start:stop] = torch.from_numpy(middle(part))
    return mean


def _middle(ordered: NDArray[np.float32]) -> NDArray[np.float64]:
    count = len(ordered)
    low, high = ordered[(count - 1) // 2].astype(np.float64), ordered[count // 2].astype(np.float64)
    return (low + high) / 2


def _inner_mean(ordered: NDArray[np.float32], share: float) -> NDArray[np.float64]:
    out = trimmed(len(ordered), share)
    sums: NDArray[np.float64] = ordered[out : len(ordered) - out].sum(axis=0, dtype=np.float64)
    return sums / (len(ordered) - 2 * out)
