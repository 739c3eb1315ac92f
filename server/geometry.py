"""How a round's updates lie to each other and to their mean, and how far the adapter has moved."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.update import SiteUpdate

PAIRS_AT_MOST = 128
"""Sites beyond which updates are no longer held against each other: the work grows with their square."""
_CHUNK = 1 << 14
"""Values of each update at a time: so that all of them fit into a processor's cache."""
_NUMBERS = re.compile(r"[0-9]+")
_STEM = re.compile(r"stem|embed|token|^conv[01]$|^bn1$|^norm0$")
_LATE = ("norm5", "bn2")
_HEADS = ("head", "classifier", "fc", "clinical")
_WHOLE = ("features",)
"""Names that hold the whole network; the block is named below them."""


@dataclass(frozen=True)
class Geometry:
    """Angles between a round's updates."""

    sites: tuple[str, ...]
    cosines: dict[str, float]
    """Site -> cosine of its update with the mean update; absent where either is zero."""
    norm: float
    """L2 norm of the mean update."""
    pairs: tuple[tuple[float, ...], ...]
    """``[sites][sites]`` cosines; a zero update has 0 with all. Empty beyond ``PAIRS_AT_MOST`` sites."""


def geometry(updates: Sequence[SiteUpdate], mean: Mapping[str, Tensor]) -> Geometry:
    """Hold updates against each other and their mean by one Gram matrix, summed in float64.

    The vectors are never laid out whole, so memory does not grow with the adapter.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    count = len(ordered)
    gram = np.zeros((count + 1, count + 1))
    space = np.empty((count + 1, _CHUNK))
    for name, total in mean.items():
        vectors = [*(update.delta[name].numpy().reshape(-1) for update in ordered), total.numpy().reshape(-1)]
        for start in range(0, total.numel(), _CHUNK):
            part = space[:, : min(_CHUNK, total.numel() - start)]
            for row, vector in enumerate(vectors):
                part[row] = vector[start : start + _CHUNK]
            _add_products(gram, part, count <= PAIRS_AT_MOST)
    norms = np.sqrt(np.diagonal(gram))
    scale = np.where(norms > 0, norms, np.inf)
    cosines = np.clip(gram / scale[:, None] / scale, -1, 1)
    names = tuple(update.site for update in ordered)
    with_mean = zip(names, cosines[:count, count].tolist(), norms[:count].tolist(), strict=True)
    size = float(norms[count])
    return Geometry(
        sites=names,
        cosines={site: cosine for site, cosine, norm in with_mean if norm > 0 and size > 0},
        norm=size,
        pairs=tuple(map(tuple, cosines[:count, :count].tolist())) if count <= PAIRS_AT_MOST else (),
    )


def _add_products(gram: NDArray[np.float64], part: NDArray[np.float64], pairs: bool) -> None:
    """Add the scalar products of all rows with each other, or only each with itself and the last."""
    if pairs:
        gram += part @ part.T  # of a matrix with itself BLAS computes one half
        return
    with_last = part @ part[-1]
    np.einsum("ii->i", gram)[:-1] += np.einsum("ij,ij->i", part[:-1], part[:-1])
    gram[:, -1] += with_last
    gram[-1, :-1] += with_last[:-1]


def drift(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, float]:
    """Return block -> L2 distance of the adapter's tensors in it from where they began, in network order.

    What fedex keeps beside the adapter is not in it.
    """
    squares = dict.fromkeys(blocks_of(start), 0.0)
    for name, tensor in now.items():
        squares[block_of(name)] += float((tensor.double() - start[name].double()).square().sum())
    return {block: math.sqrt(square) for block, square in squares.items()}


def block_of(name: str) -> str:
    """Return the part of the network that a tensor belongs to.

    >>> block_of("blocks.11.attn.qkv.lora_A.weight"), block_of("head.weight"), block_of("norm.bias")
    ('blocks.11', 'head', 'norm')
    >>> block_of("features.denseblock1.denselayer2.conv1.weight"), block_of("layer4.1.bn2.bias")
    ('denseblock1', 'layer4.1')
    >>> block_of("stages.3.blocks.0.norm.bias"), block_of("vision.blocks.2.norm1.weight")
    ('stages.3.blocks.0', 'vision.blocks.2')
    """
    parts = name.split(".")
    if parts[0] in _WHOLE and len(parts) > 1:
        parts = parts[1:]
    if parts[0] in _HEADS:
        return parts[0]
    numbered = [k for k, part in enumerate(parts[:-1]) if part.isdigit()]
    if not numbered:
        return parts[0]
    # stages.3.blocks.0 has two numbers; a Sequential inside a block (downsample.0) is no block.
    last = (
        numbered[1] if len(numbered) > 1 and parts[numbered[1] - 1] in ("blocks", "layers") else numbered[0]
    )
    return ".".join(parts[: last + 1])


def blocks_of(names: Iterable[str]) -> list[str]:
    """Return the blocks of an adapter in the order of the network: stem, numbered blocks, norms, head."""
    return sorted({block_of(name) for name in names}, key=_place)


def _place(block: str) -> tuple[int, str, tuple[int, ...], str]:
    parts = block.split(".")
    tower = parts[0] if len(parts) > 1 and not parts[1].isdigit() else ""
    numbers = tuple(int(number) for number in _NUMBERS.findall(block))
    place = 3 if block in _HEADS else 0 if _STEM.search(block) else 1 if numbers else 2
    if block in _LATE:
        place = 2
    return place, tower, numbers, block
