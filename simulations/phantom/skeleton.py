"""Bones as tubes with a cortex: ribs, spine, clavicles, scapulae and humeral heads."""

from __future__ import annotations

import numpy as np

from simulations.phantom.anatomy import Anatomy
from simulations.phantom.field import Grid, Ink, Map, ellipse, rise, round_edge, slope

RIBS = 10


def _inner_width(a: Anatomy, y: Map) -> Map:
    t = np.clip((a.base - y) / (a.base - a.apex), 0, 1) ** a.squareness
    half: Map = np.float32(a.chest + 0.012) * np.sqrt(np.maximum(1 - t, 0.02)).astype(np.float32)
    return half


def ribs(grid: Grid, a: Anatomy, wobble: Map) -> Ink:
    """Project rib loops: level ellipses in space, tilted forwards and down.

    A tilted loop seen from the front gives the posterior arc above, the anterior arc below and
    the bright turn at the lateral wall where the rib is seen end-on. ``wobble`` is ``[2, RIBS]``.
    """
    points = max(48, int(0.9 * grid.size))
    order = np.arange(RIBS, dtype=np.float32)
    # 0 at the spine, pi at the sternum; the lower ribs end sooner: [RIBS, points]
    stop = np.float32(2.55) - np.float32(0.22) * np.maximum(order - 4.5, 0)[:, None]
    angle = np.float32(0.10) + (stop - np.float32(0.10)) * np.linspace(0, 1, points, dtype=np.float32)
    xs, ys, amounts, radii = [], [], [], []
    for row, side in enumerate((-1.0, 1.0)):
        start = a.rib_y + a.rib_gap * order + 0.006 * wobble[row]
        fall = a.rib_slope * (0.55 + 0.55 * np.minimum(order / 5, 1)) + 0.012 * wobble[row]
        half = _inner_width(a, start + 0.5 * fall)[:, None]
        sin, cos = np.sin(angle), np.cos(angle)
        z = -0.43 * a.cavity / 0.88 * cos  # front positive
        front = (0.5 - 0.5 * cos).astype(np.float32)
        # Posterior arcs leave the spine slightly upwards before they fall.
        lift = -0.035 * np.sin(np.minimum(angle * 2.2, np.pi))
        x = side * (0.045 + (half - 0.045) * sin**0.92)
        y = start[:, None] + fall[:, None] * front**1.25 + lift
        xs.append(x + z * np.sin(a.turn))
        ys.append(np.broadcast_to(y, x.shape))
        # Space metric against projected metric: the loop is thick where it runs along the beam.
        along = np.hypot(slope(half * sin), slope(z))
        seen = np.hypot(slope(xs[-1]), slope(ys[-1])) + 1e-4
        end = rise(stop - np.float32(0.05) - angle, 0.16)  # cartilage does not show
        amounts.append(np.minimum(along / seen, 1.9) * end * (1 - 0.25 * front))
        radii.append(np.broadcast_to(a.rib_radius * (0.88 + 0.22 * front), x.shape))
    return grid.tube(
        np.concatenate(xs).astype(np.float32),
        np.concatenate(ys).astype(np.float32),
        np.concatenate(radii).astype(np.float32),
        np.concatenate(amounts).astype(np.float32) * np.float32(0.052 * a.bone),
        hollow=0.80,
        flat=0.4,
    )


def spine(grid: Grid, a: Anatomy) -> Map:
    """Vertebral column: bodies, darker discs, pedicles and spinous processes."""
    bow = np.float32(0.008) * np.sin(3 * grid.y + a.shift * 100) - np.float32(0.25 * a.turn)
    x = grid.x - bow
    gap = np.float32(a.rib_gap * 0.98)
    phase = np.mod((grid.y - np.float32(a.rib_y)) / gap, 1) - np.float32(0.5)
    waist = np.float32(a.spine) * (1 - np.float32(0.12) * np.cos(2 * np.pi * phase))
    column = round_edge(1 - np.abs(x / waist) * (x / waist) ** 2, 2.2 * grid.pixel / a.spine)
    disc = rise(np.abs(phase) - np.float32(0.40), 0.07)
    pedicle = np.exp(-(((np.abs(x) - 0.052) / 0.015) ** 2) - ((phase + 0.12) / 0.15) ** 2)
    process = np.exp(-((x / 0.014) ** 2) - ((phase - 0.25) / 0.17) ** 2)
    bodies: Map = np.float32(0.060 * a.bone) * column * (1 - 0.38 * disc)
    arches: Map = np.float32(0.028 * a.bone) * (pedicle + process) * (np.abs(x) < 0.12)
    return bodies + arches


def clavicles(grid: Grid, a: Anatomy) -> Ink:
    """Two S-shaped bones above the first ribs."""
    points = max(48, int(0.6 * grid.size))
    t = np.linspace(0, 1, points, dtype=np.float32)
    xs, ys = [], []
    for side in (-1.0, 1.0):
        x = side * (0.065 + 0.64 * t) + 0.42 * np.sin(a.turn) * (1 - t)
        y = a.clavicle - 0.25 * t**0.85 + 0.028 * np.sin(2 * np.pi * (t * 0.95 - 0.05))
        xs.append(x)
        ys.append(y)
    x, y = np.stack(xs).astype(np.float32), np.stack(ys).astype(np.float32)
    radius = (0.030 + 0.014 * (1 - t) ** 4 + 0.006 * t**3) * np.ones_like(x)
    end = rise(t + 0.0, 0.03) * rise(1.02 - t, 0.1)
    return grid.tube(x, y, radius.astype(np.float32), np.float32(0.075 * a.bone) * end, hollow=0.72)


def shoulders(grid: Grid, a: Anatomy) -> Map:
    """Scapular blades, humeral heads and shafts."""
    total = np.zeros_like(grid.x)
    out = a.scapula
    for side in (-1.0, 1.0):
        head = ellipse(grid, side * (0.93 + 0.6 * out), -0.56, 0.105, 0.115)
        total += np.float32(0.075) * round_edge(head, 0.25)
        blade = ellipse(grid, side * (0.66 + out * 0.9), -0.36, 0.135, 0.30, -side * 0.22)
        total += np.float32(0.012) * rise(blade, 0.5)
    shaft_x = np.abs(grid.x) - np.float32(0.95 + 0.6 * out) - np.float32(a.abduction * 0.8) * (grid.y + 0.5)
    shaft = 1 - (shaft_x * np.float32(1 / 0.052)) ** 2
    wall = round_edge(shaft, 0.6) - np.float32(0.75) * round_edge(shaft - 0.55, 0.5)
    total += np.float32(0.07) * wall * rise(grid.y + 0.50, 0.10)
    return np.float32(a.bone) * total


def scapulae(grid: Grid, a: Anatomy) -> Ink:
    """The borders and spines of the shoulder blades."""
    t = np.linspace(0, 1, max(40, int(0.5 * grid.size)), dtype=np.float32)
    out, bow = np.float32(a.scapula), np.sin(np.pi * t)
    x = np.stack(
        [
            0.50 + out + 0.09 * t + 0.03 * bow,
            0.80 + out * 0.8 - (0.21 - out * 0.2) * t - 0.03 * bow,
            0.52 + out + 0.33 * t,
        ]
    )
    y = np.stack([-0.58 + 0.60 * t, -0.50 + 0.52 * t, -0.60 - 0.10 * t - 0.02 * bow])
    strength = np.array([0.012, 0.034, 0.036] * 2, np.float32)[:, None] * np.float32(a.bone)
    return grid.tube(np.concatenate([-x, x]), np.concatenate([y, y]), 0.020, strength)
