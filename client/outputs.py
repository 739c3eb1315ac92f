"""What a frozen part of the model says of a site's studies: looked up, or computed once and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.activations import Compute, Digests, Disk, Memory, Place, Rows
from client.frozen import Frozen
from client.streams import side_by_side
from common.errors import ModelError

_log = logging.getLogger(__name__)

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of one frozen part's outputs that stay in memory where the disk has no room for them."""

Where = Literal["disk", "memory", "nowhere"]
Feed = Callable[[Rows], tuple[Tensor, ...]]
"""Makes a part's input of studies."""


class Outputs:
    """What one frozen part says of a site's studies, each computed once if there is room to keep it."""

    def __init__(
        self,
        part: Frozen,
        feed: Feed,
        digests: Digests,
        together: Iterable[Rows],
        dtype: torch.dtype,
        place: Place | None,
        beside: Mapping[str, Any],
    ) -> None:
        """Begin with nothing.

        ``digests`` ``[n]`` stand for what each study feeds to the part; ``together`` are groups of studies
        that are computed when one of them is asked for; ``beside`` names what the part's own name does
        not, as it is with the feed.
        """
        self._part, self._feed, self._digests, self._together = part, feed, digests, [*together]
        self._dtype, self._place, self._beside = dtype, place, beside
        self._stamp: tuple[int, ...] | None = None
        self._of: dict[str, Any] = {}
        self._store: Disk | Memory | None = None
        self._at = np.full(len(digests), -1, dtype=np.int64)

    @property
    def where(self) -> Where:
        """Where the outputs are kept."""
        return "disk" if isinstance(self._store, Disk) else "memory" if self._store else "nowhere"

    def take(self, rows: Rows) -> Tensor:
        """Return the outputs of some studies, fp32, on the model's device.

        Raises:
            ModelError: if they do not fit the number format they are kept in.
        """
        self._follow()
        at = self._at[rows]
        if self._store is not None and (at < 0).any():
            self._fill(rows)
            at = self._at[rows]
        kept = self._store.take(at) if self._store else np.concatenate([*self._said(rows)])
        return torch.from_numpy(kept).to(self._part.device).float()

    def _follow(self) -> None:
        """See whether the part still holds what it held; if not, find what is kept of it as it stands."""
        stamp = self._part.stamp
        if stamp == self._stamp:
            return
        self._stamp, before, self._of = stamp, self._of, self._part.name()
        if self._of == before:
            return
        self._store = Memory(MEMORY_LIMIT)
        if self._place is not None:
            numbers = torch.empty(0, dtype=self._dtype).numpy().dtype
            try:
                self._store = Disk(self._place, {**self._of, **self._beside}, numbers, self._digests)
            except OSError as error:
                _refused(error.strerror)
        self._at = self._store.find(self._digests)

    def _fill(self, rows: Rows) -> None:
        """Compute what is asked for and all that is used together with it, as far as there is room."""
        wanted = [rows, *(group for group in self._together if np.isin(rows, group).any())]
        chosen = np.unique(np.concatenate(wanted))

        def compute(positions: Rows) -> Iterator[NDArray[Any]]:
            return self._said(chosen[positions])

        if isinstance(self._store, Disk) and not _added(self._store, self._digests[chosen], compute):
            self._store = Memory(MEMORY_LIMIT)
        if isinstance(self._store, Memory) and not self._store.add(self._digests[chosen], compute):
            self._store = None
            return
        if self._store is not None:
            self._at = self._store.find(self._digests)

    def _said(self, rows: Rows) -> Iterator[NDArray[Any]]:
        """Compute, some studies at a time."""
        at_once = self._part.together
        parts = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
        with self._part.at_rest():  # until all are done: streams share the model, and each would wake it
            yield from side_by_side(self._said_of, parts, self._part.streams)

    def _said_of(self, rows: Rows) -> NDArray[Any]:
        said = self._part.say(*self._feed(rows))
        kept = said.to(self._dtype)
        if kept.isinf().any() and not said.isinf().any():
            raise ModelError(
                "the frozen prefix puts out numbers that do not fit the format they are kept in",
                found=f"{float(said.abs().max()):.3g} in {str(self._dtype).removeprefix('torch.')}",
                fix="set train.cache_dtype = 'fp32'",
            )
        return kept.cpu().contiguous().numpy()


def _added(store: Disk, digests: Digests, compute: Compute) -> bool:
    """Compute into a store on disk; False where the disk does not take it."""
    try:
        if store.add(digests, compute):
            return True
        _refused("no room within the limit")
    except OSError as error:
        _refused(error.strerror)
    return False


def _refused(why: str | None) -> None:
    _log.warning("activations are not kept under data.cache (%s); see data.activations_limit", why)
