"""Pictures that are no chest radiographs: what pretraining is given when it is given the wrong thing.

``ultrasound`` is a sector of speckle with layers, cysts and shadows; ``microscopy`` is stained tissue full
of nuclei; ``shuffled`` is a radiograph whose patches lie in another order, so that it has the grey values and
textures of a chest but not its anatomy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from simulations.phantom.cases import Cases
from simulations.phantom.field import Map
from simulations.phantom.render import render

Modality = Literal["chest", "shuffled", "ultrasound", "microscopy"]
TILES = 12
"""Patches along a side of a shuffled radiograph: at 96 px those of the embedded backbone."""
_BEAMS, _SAMPLES = 96, 192
_SECTOR = 0.62
"""Half the opening angle of the ultrasound sector, in radians."""


def draw_pictures(modality: Modality, cases: Cases, size: int, *, workers: int = 1) -> NDArray[np.float32]:
    """Draw a picture per case, ``[n, size, size]`` in [0, 1]; it depends on its own case only.

    Of a case only its seed and index count where the picture is no chest.
    """
    if modality in ("chest", "shuffled"):
        pictures = render(cases, size, workers=workers)
        if modality == "chest":
            return pictures
        shuffled = [shuffle(picture, _generator(cases, row)) for row, picture in enumerate(pictures)]
        return np.stack(shuffled) if shuffled else pictures
    draw = _OTHERS[modality]
    return np.stack([draw(_generator(cases, row), size) for row in range(len(cases))])


def shuffle(picture: Map, rng: np.random.Generator) -> Map:
    """Lay the patches of ``[S, S]`` in a random order; what is left over at two edges stays in place."""
    side = len(picture) // TILES
    inner = side * TILES
    cut = picture[:inner, :inner].reshape(TILES, side, TILES, side).swapaxes(1, 2)
    mixed = cut.reshape(-1, side, side)[rng.permutation(TILES**2)]
    shuffled = picture.copy()
    shuffled[:inner, :inner] = mixed.reshape(TILES, TILES, side, side).swapaxes(1, 2).reshape(inner, inner)
    return shuffled


def ultrasound(rng: np.random.Generator, size: int) -> Map:
    """Draw a B-mode sector ``[size, size]``: speckle with layers, fluid, reflectors and their shadows."""
    depth = np.linspace(0, 1, _SAMPLES, dtype=np.float32)[:, None]
    angle = np.linspace(-1, 1, _BEAMS, dtype=np.float32)[None, :]
    # Layers of tissue, bent a little; gain falls with depth.
    bent = depth + 0.04 * rng.standard_normal() * angle + 0.05 * rng.standard_normal() * angle**2
    edges = np.sort(rng.uniform(0.05, 0.9, rng.integers(3, 7)))
    levels = rng.uniform(0.25, 1.0, len(edges) + 1)
    echo = levels[np.searchsorted(edges, bent)] * np.exp(-rng.uniform(0.3, 1.2) * depth)
    for edge in edges:
        echo += 0.8 * np.exp(-(((bent - edge) / 0.008) ** 2))
    for _ in range(rng.integers(0, 4)):
        centre, across = rng.uniform(0.2, 0.8), rng.uniform(-0.8, 0.8)
        tall, wide = rng.uniform(0.05, 0.14), rng.uniform(0.1, 0.3)
        inside = ((depth - centre) / tall) ** 2 + ((angle - across) / wide) ** 2 < 1
        behind = (np.abs(angle - across) < 0.8 * wide) & (depth > centre + tall)
        fluid = rng.random() < 0.6
        echo = np.where(inside, 0.03 if fluid else 1.6, echo)
        echo = np.where(behind, echo * (1.6 if fluid else 0.25), echo)
    # Fully developed speckle: the magnitude of smoothed complex noise is Rayleigh distributed.
    noise = [gaussian_filter(rng.standard_normal(echo.shape), (1.2, 0.8)) for _ in range(2)]
    speckle = np.hypot(*noise)
    shown = np.log1p(30 * echo * speckle / speckle.mean()) / np.log(60)
    return _sector(shown.astype(np.float32), size)


def _sector(beams: Map, size: int) -> Map:
    """Lay beams ``[samples, beams]`` out as a fan whose apex is above the picture."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = 2 * axis[None, :] - 1, axis[:, None] + 0.25
    radius, angle = np.hypot(0.8 * x, y), np.arctan2(0.8 * x, y)
    sample = (radius - 0.28) / 0.95 * (_SAMPLES - 1)
    beam = (angle / _SECTOR + 1) / 2 * (_BEAMS - 1)
    fan = map_coordinates(beams, [sample, beam], order=1, mode="constant", cval=0.0)
    picture: Map = np.clip(fan, 0, 1).astype(np.float32)
    return picture


def microscopy(rng: np.random.Generator, size: int) -> Map:
    """Draw stained tissue ``[size, size]``: dark nuclei, paler cells around them, fibres, bright gaps."""
    axis = np.arange(size, dtype=np.float32) / size
    at = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    warp = np.stack(
        [gaussian_filter(rng.standard_normal((size, size)), size / 24) for _ in range(2)], axis=-1
    )
    warped = at + 0.012 * warp / warp.std()
    count = int(rng.integers(60, 260))
    centres, radii = rng.random((count, 2)), rng.uniform(0.35, 0.8, count) / np.sqrt(count) * 0.5
    distance, nearest = cKDTree(centres).query(warped.reshape(-1, 2))
    away = (distance / radii[nearest]).reshape(size, size)
    fibres = gaussian_filter(rng.standard_normal((size, size)), (size / 60, size / 12))
    if rng.random() < 0.5:
        fibres = fibres.T
    tissue = 0.72 + 0.05 * fibres / fibres.std()
    gaps = gaussian_filter(rng.standard_normal((size, size)), size / 14)
    tissue = np.where(gaps > 1.1 * gaps.std(), 0.95, tissue)
    chromatin = 0.06 * gaussian_filter(rng.standard_normal((size, size)), 0.8)
    nuclei = 1 / (1 + np.exp((away - 1) * 9))
    picture = tissue * (1 - nuclei) + (0.30 + chromatin + 0.1 * rng.random()) * nuclei
    return np.clip(picture, 0, 1).astype(np.float32)


_OTHERS: Mapping[str, Callable[[np.random.Generator, int], Map]] = {
    "ultrasound": ultrasound,
    "microscopy": microscopy,
}


def _generator(cases: Cases, row: int) -> np.random.Generator:
    return np.random.default_rng([cases.seed, 41, int(cases.index[row])])
