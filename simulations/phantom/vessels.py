"""Pulmonary vessels: trees that leave the hila, branch four times and thin out."""

from __future__ import annotations

import numpy as np

from simulations.phantom.anatomy import Anatomy
from simulations.phantom.field import Grid, Ink

LEVELS = 5
STEMS = 9


def vessels(grid: Grid, a: Anatomy, rng: np.random.Generator) -> list[Ink]:
    """Draw both lungs' vessels as soft-tissue thickness; the caller masks them to the lung."""
    # Stem angles fan from upwards (-77 degrees) to downwards (+83 degrees), right lung first.
    stems = 2 * STEMS
    side = np.repeat([-1.0, 1.0], STEMS)
    angle = np.tile(np.linspace(-1.35, 1.45, STEMS), 2) + 0.10 * rng.standard_normal(stems)
    x = side * 0.135 + a.shift + 0.012 * rng.standard_normal(stems)
    y = np.where(side > 0, -0.045, -0.005) + 0.05 * np.sin(angle)
    length = 0.20 * np.exp(0.12 * rng.standard_normal(stems)) * (1 + 0.15 * np.abs(np.sin(angle)))
    radius = 0.0165 * np.exp(0.12 * rng.standard_normal(stems)) * a.vessels
    radius = radius * np.where(angle < 0, 0.80 + 1.2 * a.cephalised, 1.08)
    inks = [hila(grid, a)]
    for _ in range(LEVELS):
        bend = 0.30 * rng.standard_normal(angle.size)
        pieces = max(4, int(np.ceil(length.mean() * grid.size * 0.75)))
        t = np.linspace(0, 1, pieces, dtype=np.float32)
        heading = (angle[:, None] + bend[:, None] * t).astype(np.float32)  # [segments, pieces]
        step = (length / pieces).astype(np.float32)[:, None]
        px = x[:, None] + np.cumsum(np.cos(heading) * step * side[:, None], axis=1)
        py = y[:, None] + np.cumsum(np.sin(heading) * step, axis=1)
        r = radius[:, None] * (1 - 0.25 * t)
        inks.append(grid.tube(px, py, r, 2 * r))
        # The second child leaves part of the way along, which avoids a visible lattice.
        fork = 0.36 + 0.12 * rng.standard_normal((2, angle.size))
        rows, back = np.arange(angle.size), ((0.45 + 0.5 * rng.random(angle.size)) * pieces).astype(int)
        angle = np.concatenate([heading[:, -1] + fork[0], heading[:, -1] - fork[1]])
        x = np.concatenate([px[:, -1], px[rows, back]])
        y = np.concatenate([py[:, -1], py[rows, back]])
        side = np.tile(side, 2)
        length = np.tile(length, 2) * 0.74 * np.exp(0.18 * rng.standard_normal(angle.size))
        radius = np.tile(radius, 2) * 0.70 * np.exp(0.08 * rng.standard_normal(angle.size))
    return inks


def hila(grid: Grid, a: Anatomy) -> Ink:
    """The main pulmonary arteries, the left arching higher than the right."""
    t = np.linspace(0, 1, max(30, grid.size // 3), dtype=np.float32)
    right_x = a.shift - 0.11 - 0.085 * np.sin(np.pi * 0.62 * t)
    left_x = a.shift + 0.12 + 0.075 * np.sin(np.pi * 0.60 * t)
    x = np.stack([right_x, left_x]).astype(np.float32)
    y = np.stack([-0.06 + 0.29 * t, -0.10 + 0.27 * t]).astype(np.float32)
    radius = (0.040 * (1 - 0.55 * t) * a.hilum * a.vessels**0.5 * np.ones_like(x)).astype(np.float32)
    return grid.tube(x, y, radius, 1.6 * radius)
