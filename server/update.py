"""SiteUpdate: what is left of a site's answer once it has been admitted; Updates: all of a round's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.adapter import AdapterSchema

_BLOCK = 1 << 15


@dataclass(frozen=True)
class SiteUpdate:
    """One admitted update."""

    site: str
    num_examples: int
    """Training studies behind it: its weight in the mean."""
    labelled: NDArray[np.int64]
    """``[F]``: of these, how many carry each finding's label; 0 where the site does not own it."""
    delta: Mapping[str, Tensor]
    """Tensor name -> trained minus received."""


@dataclass(frozen=True)
class Sender:
    """Who sent an update and what it weighs, without its values."""

    site: str
    num_examples: int
    labelled: NDArray[np.int64]
    """``[F]``."""
    norm: float
    """L2 norm of the update."""


class Updates(Protocol):
    """A round's admitted updates as flat vectors in wire order, wherever they are kept.

    What is computed of them reads a part at a time, so its memory does not grow with the number of
    sites, and goes through the sites by name, so who answered first changes nothing.
    """

    @property
    def schema(self) -> AdapterSchema:
        """The tensors the round trained."""
        ...

    @property
    def senders(self) -> Sequence[Sender]:
        """The sites, by name."""
        ...

    def read(self, place: int, start: int, stop: int) -> Tensor:
        """Return values ``[stop - start]`` of the sender at ``place``; the next call may overwrite them."""
        ...

    def tensors(self, place: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return those of the named tensors that the round trained, of the sender at ``place``."""
        ...


def named(flat: Tensor, schema: AdapterSchema) -> dict[str, Tensor]:
    """Return the tensors that a flat vector ``[numel]`` is made of, as views of it."""
    parts = flat.split([math.prod(shape) for _, shape in schema.shapes]) if schema.shapes else ()
    return {name: part.reshape(shape) for (name, shape), part in zip(schema.shapes, parts, strict=True)}


def l2_norm(values: NDArray[np.float32]) -> float:
    """Return the norm of a flat vector; squares are summed in float64, where no finite fp32 value overflows.

    So it is finite exactly where every value is.

    >>> l2_norm(np.full(4, 2.0, np.float32)), l2_norm(np.array([1.0, np.inf], np.float32))
    (4.0, inf)
    """
    squares = 0.0
    for start in range(0, values.size, _BLOCK):
        wide = values[start : start + _BLOCK].astype(np.float64)
        squares += float(wide @ wide)
    return math.sqrt(squares)
