"""The weighted mean of updates, row by row where sites annotate different findings."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import SchemaError
from server.strategies.stretch import Stretch, parts, stretches
from server.update import Updates

BLOCK = 1 << 17
"""Values at a time: their float64 sums stay in the cache while every site's are added to them."""


def weighted_mean(updates: Updates) -> Tensor:
    """Average updates, each site weighted by its number of examples (McMahan et al. 2017, alg. 1).

    A head row l is averaged over the sites that annotate finding l: sum_i n_il d_il / sum_i n_il.
    A row nobody annotates gets exactly zero. Sums run in float64 in site order; a product of a
    number of studies and an fp32 value is exact in it, so no machine rounds it differently.

    >>> import numpy as np
    >>> from common.adapter import AdapterSchema
    >>> from server.spool import Spool
    >>> from server.update import SiteUpdate
    >>> a = SiteUpdate("a", 1, np.array([1]), {"w": torch.tensor([0.0])})
    >>> b = SiteUpdate("b", 3, np.array([3]), {"w": torch.tensor([4.0])})
    >>> weighted_mean(Spool.of([a, b], AdapterSchema((("w", (1,)),))))
    tensor([3.], dtype=torch.float64)

    Returns:
        ``[numel]`` float64 in wire order.

    Raises:
        SchemaError: if there is no update.
    """
    mean = zeros(updates)
    space = torch.empty(min(BLOCK, len(mean)), dtype=torch.float64)
    for stretch in stretches(updates.schema):
        weights = stretch.weights(updates.senders)
        if stretch.rows:
            _average_rows(mean[stretch.start : stretch.stop], updates, stretch, torch.from_numpy(weights))
            continue
        total = int(weights.sum())
        for start, stop in parts(stretch.start, stretch.stop, BLOCK) if total else ():
            sums = space[: stop - start].zero_()
            for place, weight in enumerate(weights[:, 0].tolist()):
                sums.add_(updates.read(place, start, stop), alpha=weight)
            torch.div(sums, total, out=mean[start:stop])
    return mean


def _average_rows(mean: Tensor, updates: Updates, stretch: Stretch, weights: Tensor) -> None:
    """Write the mean of a tensor of the head, small beside the body; ``weights [sites, rows]``."""
    sums = mean.reshape(stretch.rows, -1)
    for place, weight in enumerate(weights.double()):
        delta = updates.read(place, stretch.start, stretch.stop).double()
        sums.addcmul_(delta.reshape(stretch.rows, -1), weight[:, None])
    total = weights.sum(dim=0)
    sums.div_(total.clamp(min=1)[:, None])


def zeros(updates: Updates) -> Tensor:
    """Return what a mean is written into.

    Raises:
        SchemaError: if there is no update.
    """
    if not updates.senders:
        raise SchemaError("there is no update to average")
    return torch.zeros(updates.schema.numel, dtype=torch.float64)
