"""Trunk, chest cavity, heart and diaphragm as thickness maps ``[S, S]``."""

from __future__ import annotations

import numpy as np

from simulations.phantom.anatomy import Anatomy
from simulations.phantom.field import Grid, Map, blend, ellipse, ellipsoid, positive, rise, round_edge


def body(grid: Grid, a: Anatomy) -> Map:
    """Thickness of the whole patient, as if there were no air inside."""
    x, y = np.abs(grid.x), grid.y
    top = np.float32(a.shoulder) - np.float32(0.26) * np.exp(-(x * x) * np.float32(18.0))
    top = top + np.float32(a.slope) * x * np.sqrt(x)
    below = np.clip((y - top) * np.float32(1 / 0.55), 0, 1)
    # A quarter circle of depth below the skin line: thin at the trapezius, full at the chest.
    ridge = np.sqrt(below * (2 - below))
    flank = np.float32(a.width) + np.float32(0.05) * rise(y - 0.45, 0.5)
    trunk = np.float32(a.depth) * ridge * round_edge(1 - ((x / flank) ** 2) ** 2, 3.5 * grid.pixel)
    girdle = round_edge(1 - ((x / np.float32(1.22)) ** 2) ** 2, 0.05) * rise(
        0.12 - y + 0.35 * (x - 0.8), 0.34
    )
    girdle = np.float32(0.84 * a.depth) * ridge * girdle
    neck = round_edge(1 - (x / np.float32(0.25 + 0.08 * (a.width - 0.85))) ** 2, 0.1)
    neck = np.float32(0.78) * neck * rise(-0.50 - y, 0.25)
    elbow = np.float32(a.width + 0.16) + np.float32(a.abduction) * (y + 0.4)
    arms = np.float32(0.60) * round_edge(1 - ((x - elbow) / np.float32(0.20)) ** 2, 0.12)
    arms = arms * rise(y + 0.62, 0.25)
    return blend(trunk, girdle, neck, arms)


def breasts(grid: Grid, a: Anatomy) -> Map:
    """Two crescents of tissue: dense at the lower rim, fading upwards."""
    total = np.zeros_like(grid.x)
    if a.breast <= 0.01:
        return total
    size = 0.22 + 0.25 * a.breast
    for side in (-1.0, 1.0):
        inside = ellipse(grid, side * (0.40 + 0.12 * a.breast), a.breast_y, size * 1.12, size)
        lift = rise(grid.y - np.float32(a.breast_y - 0.15), 0.32)
        total += np.float32(0.85 * a.breast) * round_edge(inside, 0.30) * (0.25 + 0.70 * lift)
    return total


def chest_wall(grid: Grid, a: Anatomy, margin: float = 0.0) -> tuple[Map, Map]:
    """Half-width of the inner chest at each pixel's level, and how far inside a pixel lies.

    ``margin`` shrinks the chest from above and from the sides: the edge of a collapsed lung.
    The second map is ``1 - (x / a)^2``, 0 at the wall.
    """
    top = a.apex + 1.5 * margin
    t = np.clip((np.float32(a.base) - grid.y) / np.float32(a.base - top), -1, 1)
    up = np.maximum(t, 0) ** np.float32(a.squareness)
    low = np.float32(0.05) * np.maximum(-t, 0) ** 2
    half = np.float32(a.chest - margin) * np.sqrt(np.maximum(1 - up, 1e-4)) * (1 - low)
    return half, 1 - (grid.x / half) ** 2


def cavity(grid: Grid, a: Anatomy) -> Map:
    """Depth of the chest cavity between front and back wall."""
    _, inside = chest_wall(grid, a)
    shallow = np.clip((grid.y - np.float32(a.apex)) / np.float32(0.62), 0, 1)
    arch = np.float32(0.45) + np.float32(0.55) * np.sqrt(shallow * (2 - shallow))
    # Root tissue and paraspinal muscle leave less air beside the spine.
    arch = arch * (1 - np.float32(0.17) * np.exp(grid.x * grid.x * np.float32(-28)))
    depth: Map = np.float32(a.cavity) * arch * positive(inside, 3.0 * grid.pixel) ** np.float32(0.42)
    return depth


def dome(grid: Grid, a: Anatomy, side: int) -> Map:
    """Height of one hemidiaphragm above each pixel's column."""
    level = a.dome_left if side > 0 else a.dome_right
    out = side * grid.x - np.float32(0.46 * a.chest)
    lateral = np.maximum(out, 0) / np.float32(0.54 * a.chest)
    medial = np.maximum(-out, 0) / np.float32(0.46 * a.chest)
    height: Map = np.float32(level) + a.sulcus * lateral ** np.float32(2.3) + np.float32(0.09) * medial**2
    return height


def below_diaphragm(grid: Grid, a: Anatomy) -> Map:
    """Share of the cavity's air lost below the domes."""
    left = rise(grid.x - np.float32(a.shift), 0.08)
    level = left * dome(grid, a, 1) + (1 - left) * dome(grid, a, -1)
    depth = grid.y - level
    full = rise(depth, 0.9 * grid.pixel + 0.008)
    # The posterior recess keeps a little lung behind the dome.
    recess = np.float32(0.16) * np.exp(-np.maximum(depth, 0) / np.float32(0.07))
    return full * (1 - recess)


def mediastinum(grid: Grid, a: Anatomy) -> Map:
    """Thickness of heart, great vessels and aorta, in front of the spine."""
    cx = a.shift + 0.22 * a.turn
    reach = a.heart_left * 0.62
    left = ellipsoid(
        grid,
        cx + a.heart_left - reach,
        a.heart_y + 0.08,
        reach * 1.08,
        a.heart_height * 0.90,
        a.heart_depth,
        a.heart_tilt,
    )
    right = ellipsoid(
        grid, cx - a.heart_right + 0.19, a.heart_y + 0.06, 0.19, a.heart_height, 0.85 * a.heart_depth
    )
    core = ellipsoid(
        grid, cx + 0.06, a.heart_y + 0.05, 0.22, 1.12 * a.heart_height, 0.9 * a.heart_depth, 0.25
    )
    x = grid.x - np.float32(cx)
    flare = np.float32(a.mediastinum) * (1 + np.float32(0.5) * rise(-0.48 - grid.y, 0.2))
    column = round_edge(1 - np.abs(x / flare) * (x / flare) ** 2, 2.5 * grid.pixel / a.mediastinum)
    column = np.float32(0.50) * column
    arch = ellipsoid(grid, cx + 0.075 + a.knob * 0.45, -0.315, a.knob, a.knob * 1.05, 0.36)
    trunk = ellipsoid(grid, cx + 0.10, -0.10, a.trunk, 0.15, 0.34, -0.25)
    cava = ellipsoid(grid, cx - 0.045, -0.20, a.mediastinum * 0.98, 0.28, 0.34)
    # The descending aorta follows the spine on the left, behind the heart.
    bend = np.float32(cx + 0.035 + 0.35 * a.knob) + np.float32(0.03) * np.sin(2.2 * grid.y)
    aorta = np.float32(0.17) * round_edge(
        1 - ((grid.x - bend) / np.float32(0.075)) ** 2, 2 * grid.pixel / 0.075
    )
    aorta = aorta * rise(grid.y + 0.36, 0.08)
    return blend(left, right, core, column, arch, trunk, cava) + np.float32(0.5) * aorta


def airway(grid: Grid, a: Anatomy) -> Map:
    """Air in the trachea and the main bronchi."""
    drift = np.float32(0.6 * a.shift + 0.3 * a.turn)
    points = max(60, grid.size)
    y = np.linspace(-1.1, -0.25, points, dtype=np.float32)
    x = drift + np.float32(0.02) * np.clip((y + 0.6) / 0.3, 0, 1) * -0.8
    t = np.linspace(0, 1, points, dtype=np.float32)
    right = (x[-1] - 0.16 * t, -0.25 + 0.16 * t)
    left = (x[-1] + 0.20 * t, -0.25 + 0.13 * t)
    xs, ys = np.stack([x, right[0], left[0]]), np.stack([y, right[1], left[1]])
    radius = np.stack([np.full(points, 0.040), 0.032 - 0.01 * t, 0.028 - 0.01 * t]).astype(np.float32)
    return grid.splat(grid.tube(xs, ys, radius, np.array([[0.13], [0.075], [0.07]], np.float32)))


def stomach(grid: Grid, a: Anatomy) -> Map:
    """Gas under the left dome, flat at its fluid level."""
    if a.gas < 0.05:
        return np.zeros_like(grid.x)
    rx = 0.09 + 0.10 * a.gas
    cy = a.dome_left + 0.075 + 0.05 * a.gas
    bubble = ellipsoid(grid, 0.27 + 0.03 * a.gas, cy, rx, 0.05 + 0.05 * a.gas, 0.30 + 0.2 * a.gas, 0.1)
    return bubble * (1 - 0.7 * rise(grid.y - np.float32(cy + 0.02), 0.02))
