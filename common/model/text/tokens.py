"""Texts as token ids, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tokens:
    """The tokens of n texts."""

    ids: NDArray[np.int32]
    """``[n, L]``, padded at the end."""
    mask: NDArray[np.bool_]
    """``[n, L]``: True where a token is; a row without any is a missing text."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> Tokens:
        """Return these rows, in that order."""
        return Tokens(self.ids[rows], self.mask[rows])

    @property
    def missing(self) -> NDArray[np.bool_]:
        """``[n]``: True where there is no text."""
        return np.asarray(~self.mask.any(axis=1))


def pad(rows: Sequence[Sequence[int]], padding: int) -> Tokens:
    """Pad rows of ids to the longest; an empty row is a missing text.

    >>> pad([[5, 6], []], 0).mask.tolist()
    [[True, True], [False, False]]
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    mask = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    ids = np.full(mask.shape, padding, dtype=np.int32)
    ids[mask] = np.fromiter((i for row in rows for i in row), dtype=np.int32, count=int(lengths.sum()))
    return Tokens(ids, mask)
