"""Pulmonary vessels: trees that leave the hila, branch four times and thin out."""

from __future__ import annotations

import numpy as np

from simulations.phantom.anatomy import Anatomy
from simulations.phantom.field import Grid, Map

LEVELS = 5
STEMS = 9


def vessel_map(grid: Grid, a: Anatomy, rng: np.random.Generator) -> Map:
    """Draw both lungs' vessels as soft-tissue thickness; the caller masks them to the lung."""
    maps = np.zeros_like(grid.x)
    for side in (-1.0, 1.0):
        # Stem angles fan from upwards (-80 degrees) to downwards (+85 degrees).
        fan = np.linspace(-1.35, 1.45, STEMS) + 0.10 * rng.standard_normal(STEMS)
        x = np.full(STEMS, side * 0.135 + a.shift) + 0.012 * rng.standard_normal(STEMS)
        y = np.full(STEMS, -0.045 if side > 0 else -0.005) + 0.05 * np.sin(fan)
        length = 0.20 * np.exp(0.12 * rng.standard_normal(STEMS)) * (1 + 0.15 * np.abs(np.sin(fan)))
        radius = 0.0165 * np.exp(0.12 * rng.standard_normal(STEMS)) * a.vessels
        radius = radius * np.where(fan < 0, 0.80 + 1.2 * a.cephalised, 1.08)
        angle = fan
        for level in range(LEVELS):
            bend = 0.30 * rng.standard_normal(angle.size)
            pieces = max(4, int(np.ceil(length.max() * grid.size * 0.75)))
            t = np.linspace(0, 1, pieces)
            heading = angle[:, None] + bend[:, None] * t  # [segments, pieces]
            step = length[:, None] / pieces
            px = x[:, None] + side * np.cumsum(np.cos(heading) * step, axis=1)
            py = y[:, None] + np.cumsum(np.sin(heading) * step, axis=1)
            r = radius[:, None] * (1 - 0.25 * t)
            maps += grid.tube(
                px.astype(np.float32),
                py.astype(np.float32),
                r.astype(np.float32),
                (2.0 * r).astype(np.float32),
            )
            fork = 0.36 + 0.12 * rng.standard_normal((2, angle.size))
            end = heading[:, -1]
            angle = np.concatenate([end + fork[0], end - fork[1]])
            # The second child leaves part of the way along, which avoids a visible lattice.
            back = ((0.45 + 0.5 * rng.random(angle.size // 2)) * pieces).astype(int)
            rows = np.arange(back.size)
            x = np.concatenate([px[:, -1], px[rows, back]])
            y = np.concatenate([py[:, -1], py[rows, back]])
            length = np.tile(length, 2) * 0.74 * np.exp(0.18 * rng.standard_normal(angle.size))
            radius = np.tile(radius, 2) * 0.70 * np.exp(0.08 * rng.standard_normal(angle.size))
    return maps + hila(grid, a)


def hila(grid: Grid, a: Anatomy) -> Map:
    """The main pulmonary arteries, the left arching higher than the right."""
    t = np.linspace(0, 1, max(30, grid.size // 3), dtype=np.float32)
    right_x = a.shift - 0.11 - 0.085 * np.sin(np.pi * 0.62 * t)
    left_x = a.shift + 0.12 + 0.075 * np.sin(np.pi * 0.60 * t)
    x = np.stack([right_x, left_x]).astype(np.float32)
    y = np.stack([-0.06 + 0.29 * t, -0.10 + 0.27 * t]).astype(np.float32)
    radius = (0.040 * (1 - 0.55 * t) * a.hilum * a.vessels**0.5 * np.ones_like(x)).astype(np.float32)
    return grid.tube(x, y, radius, 1.6 * radius)
