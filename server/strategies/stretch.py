"""Stretches of the flat vector that are averaged alike, cut into parts that a processor's cache holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.adapter import AdapterSchema
from server.update import Sender


@dataclass(frozen=True)
class Stretch:
    """Values next to each other that are averaged alike: a tensor of the head, or all between two of them."""

    start: int
    stop: int
    rows: int
    """Rows of the head, one for each finding; 0: the body, averaged over all sites."""

    def weights(self, senders: Sequence[Sender]) -> NDArray[np.int64]:
        """Return what each site weighs ``[sites, rows or 1]``: its studies, or those of a finding."""
        if not self.rows:
            return np.array([[sender.num_examples] for sender in senders])
        return np.array([sender.labelled for sender in senders])

    def each(self) -> list[tuple[int, int]]:
        """Return ``(start, stop)`` of every row; the body is one."""
        size = (self.stop - self.start) // max(self.rows, 1)
        return [(self.start + k * size, self.start + (k + 1) * size) for k in range(max(self.rows, 1))]


def parts(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut a stretch into ``(start, stop)`` of at most ``size`` values."""
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def stretches(schema: AdapterSchema) -> list[Stretch]:
    """Cut a flat vector into its stretches.

    >>> schema = AdapterSchema((("a", (3,)), ("b", (2, 2)), ("head", (2, 4))), ("head",))
    >>> stretches(schema)
    [Stretch(start=0, stop=7, rows=0), Stretch(start=7, stop=15, rows=2)]
    >>> stretches(schema)[1].each()
    [(7, 11), (11, 15)]
    """
    found: list[Stretch] = []
    place = 0
    for name, shape in schema.shapes:
        stop = place + math.prod(shape)
        if name in schema.head:
            found.append(Stretch(place, stop, shape[0]))
        elif found and not found[-1].rows:
            found[-1] = Stretch(found[-1].start, stop, 0)
        else:
            found.append(Stretch(place, stop, 0))
        place = stop
    return found
