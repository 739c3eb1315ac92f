"""Tubes, lines, pacemakers, leads and drains: thin dense objects on top of the patient."""

from __future__ import annotations

import numpy as np

from simulations.phantom.anatomy import Anatomy
from simulations.phantom.field import Grid, Map, ellipse, rise
from simulations.phantom.placement import Placement


def device_map(grid: Grid, a: Anatomy, s: float, place: Placement) -> Map:
    """Draw the devices that severity ``s`` calls for; their density grows with it too."""
    rng = np.random.default_rng([place.detail, 5])
    jitter = rng.standard_normal((5, 8)).astype(np.float32)
    total = np.zeros_like(grid.x)
    for k, kind in enumerate(place.shown_devices(s)):
        total += _DRAW[kind](grid, a, jitter[k], 1.0 if rng.random() < 0.5 else -1.0)
    return total * np.float32(0.5 + 0.7 * s)


def _curve(grid: Grid, knots: list[tuple[float, float]]) -> tuple[Map, Map]:
    """Pass a smooth curve (Catmull-Rom) through ``knots``."""
    p = np.asarray(knots, np.float32)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    per = max(48, grid.size)
    t = np.linspace(0, 1, per, endpoint=False, dtype=np.float32)[:, None]
    parts = []
    for k in range(1, len(p) - 2):
        a, b, c, d = p[k - 1], p[k], p[k + 1], p[k + 2]
        parts.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    line = np.concatenate(parts)
    return line[:, 0], line[:, 1]


def _wire(
    grid: Grid, knots: list[tuple[float, float]], radius: float, density: float, hollow: float = 0.0
) -> Map:
    x, y = _curve(grid, knots)
    return grid.splat(grid.tube(x[None], y[None], radius, density, hollow=hollow))


def _tube(grid: Grid, a: Anatomy, j: Map, side: float) -> Map:
    tip = -0.36 + 0.06 * float(j[0])
    x = 0.6 * a.shift
    knots = [(x + 0.03 * j[1], -1.3), (x + 0.01 * j[2], -0.8), (x, tip)]
    return _wire(grid, knots, 0.020, 0.070, hollow=0.6) + _wire(grid, knots, 0.005, 0.060)


def _line(grid: Grid, a: Anatomy, j: Map, side: float) -> Map:
    end = (a.shift - 0.075, 0.0 + 0.07 * float(j[0]))
    if j[1] > 0:  # jugular
        knots = [(-0.20 + 0.02 * j[2], -1.25), (-0.15, -0.80), (-0.085 + a.shift, -0.45), end]
    else:  # from the arm or below the clavicle
        knots = [
            (side * 1.2, -0.30),
            (side * 0.72, -0.52),
            (side * 0.34, -0.58),
            (a.shift - 0.02, -0.46),
            end,
        ]
    return _wire(grid, [(float(x), float(y)) for x, y in knots], 0.009, 0.085)


def _pacemaker(grid: Grid, a: Anatomy, j: Map, side: float) -> Map:
    side = 1.0 if j[3] > -1 else -1.0  # mostly on the left
    cx, cy = side * (0.52 + 0.04 * float(j[0])), -0.46 + 0.04 * float(j[1])
    box = ellipse(grid, cx, cy, 0.115, 0.095, side * 0.4)
    can = np.float32(0.22) * rise(box, 2 * grid.pixel / 0.1)
    lead = [
        (cx - side * 0.05, cy - 0.06),
        (side * 0.24, -0.56),
        (a.shift - 0.06, -0.34),
        (a.shift - 0.10, 0.05),
        (a.shift + 0.05, 0.22),
        (a.shift + 0.55 * a.heart_left, a.heart_y + 0.12),
    ]
    return can + _wire(grid, lead, 0.008, 0.10)


def _leads(grid: Grid, a: Anatomy, j: Map, side: float) -> Map:
    total = np.zeros_like(grid.x)
    spots = [(-0.55, -0.42), (0.55, -0.45), (0.5, 0.45)]
    for k, (x, y) in enumerate(spots):
        x, y = x + 0.05 * float(j[k]), y + 0.05 * float(j[k + 3])
        total += np.float32(0.05) * rise(ellipse(grid, x, y, 0.030, 0.030), 0.5)
        total += np.float32(0.07) * rise(ellipse(grid, x, y, 0.014, 0.014), 0.9)
        pull = 0.30 * float(j[6])
        total += _wire(
            grid, [(x, y), (x * 0.7 + 0.08 * pull, y + 0.30), (side * 0.45 + pull, 1.3)], 0.0065, 0.045
        )
    return total


def _drain(grid: Grid, a: Anatomy, j: Map, side: float) -> Map:
    side = 1.0 if j[7] >= 0 else -1.0
    knots = [
        (side * 1.05, 0.42),
        (side * 0.66, 0.24 + 0.05 * j[0]),
        (side * 0.46, -0.10),
        (side * 0.36, -0.46 + 0.06 * j[1]),
    ]
    return _wire(grid, [(float(x), float(y)) for x, y in knots], 0.019, 0.045, hollow=0.7)


_DRAW = {"tube": _tube, "line": _line, "pacemaker": _pacemaker, "leads": _leads, "drain": _drain}
