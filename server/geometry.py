"""How a round's updates lie to each other and to their mean, and how far the adapter has moved."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.update import Updates

PAIRS_AT_MOST = 128
"""Sites beyond which updates are no longer held against each other: the work grows with their square."""
_SPACE = 1 << 20
"""Values of all updates at a time."""
_CHUNK = 1 << 14
"""Values of each of them at most: so that all fit into a processor's cache."""
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


def geometry(updates: Updates, mean: Tensor) -> Geometry:
    """Hold updates against each other and their ``mean [numel]``, with sums in float64.

    The vectors are never laid out whole, so memory grows neither with the adapter nor with the
    number of sites.
    """
    names = tuple(sender.site for sender in updates.senders)
    pairs = _all_products(updates, mean) if len(names) <= PAIRS_AT_MOST else None
    if pairs is None:
        squares, with_mean = _products_with_mean(updates, mean)
    else:
        squares, with_mean = np.diagonal(pairs), pairs[-1]
    norms = np.sqrt(squares)
    scale = np.where(norms > 0, norms, np.inf)
    cosines = np.clip(with_mean / scale / scale[-1], -1, 1).tolist()
    size = float(norms[-1])
    between = () if pairs is None else np.clip(pairs / scale[:, None] / scale, -1, 1)[:-1, :-1].tolist()
    return Geometry(
        sites=names,
        cosines={site: cosines[k] for k, site in enumerate(names) if norms[k] > 0 and size > 0},
        norm=size,
        pairs=tuple(map(tuple, between)),
    )


def _all_products(updates: Updates, mean: Tensor) -> NDArray[np.float64]:
    """Return the Gram matrix of the updates and, last, the mean."""
    count = len(updates.senders) + 1
    size = min(_CHUNK, _SPACE // count)
    gram, space = np.zeros((count, count)), np.empty((count, size))
    for start in range(0, len(mean), size):
        stop = min(start + size, len(mean))
        part = space[:, : stop - start]
        for place in range(count - 1):
            part[place] = updates.read(place, start, stop).numpy()
        part[-1] = mean[start:stop].numpy()
        gram += part @ part.T  # of a matrix with itself BLAS computes one half
    return gram


def _products_with_mean(updates: Updates, mean: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squares of the updates and, last, of the mean, and their products with the mean."""
    products = np.zeros(len(updates.senders) + 1)
    for start in range(0, len(mean), _CHUNK):
        stop = min(start + _CHUNK, len(mean))
        middle = mean[start:stop].numpy()
        products[-1] += middle @ middle
        for place in range(len(products) - 1):
            products[place] += updates.read(place, start, stop).double().numpy() @ middle
    squares = [sender.norm**2 for sender in updates.senders]
    return np.array([*squares, products[-1]]), products


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
