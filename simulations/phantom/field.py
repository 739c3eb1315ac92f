"""The plane a radiograph is drawn on: pose, soft shapes, tubes and smooth noise.

Lengths are in units of half the field of view (about 17 cm). ``x`` grows to the right of the
picture, which is the patient's left; ``y`` grows downwards. ``S`` is the image side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.floating[Any]]
"""A map ``[S, S]`` or a curve, float32 wherever it is large."""
Ink = tuple[Map, Map, Map]
"""Points to deposit: x, y, and thickness times area."""


@dataclass(frozen=True)
class Pose:
    """Where the patient stands in the frame."""

    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    roll: float = 0.0
    """In-plane rotation in radians."""


@dataclass(frozen=True)
class Grid:
    """Anatomical coordinates of every pixel, and the way back from anatomy to pixels."""

    size: int
    pose: Pose
    x: Map
    y: Map

    @classmethod
    def of(cls, size: int, pose: Pose) -> Grid:
        """Lay ``S x S`` pixel centres over the patient."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        u = ((axis - pose.dx) / pose.scale).astype(np.float32)[None, :]
        v = ((axis - pose.dy) / pose.scale).astype(np.float32)[:, None]
        c, s = np.float32(np.cos(pose.roll)), np.float32(np.sin(pose.roll))
        return cls(size, pose, c * u + s * v, c * v - s * u)

    @property
    def pixel(self) -> float:
        """Side of a pixel in anatomical units."""
        return 2 / (self.size * self.pose.scale)

    def splat(self, *inks: Ink) -> Map:
        """Deposit points as thickness; each point is shared between the four nearest pixels."""
        pose, size = self.pose, self.size
        x, y, amount = (np.concatenate([ink[k] for ink in inks]) for k in range(3))
        half = size / 2
        c = np.float32(half * pose.scale * np.cos(pose.roll))
        s = np.float32(half * pose.scale * np.sin(pose.roll))
        col = c * x - s * y + np.float32((pose.dx + 1) * half + 1.5)
        row = s * x + c * y + np.float32((pose.dy + 1) * half + 1.5)
        # A margin of two pixels takes what falls outside, so the inner loop needs no masks.
        wide = size + 4
        np.clip(col, 0, wide - 2, out=col)
        np.clip(row, 0, wide - 2, out=row)
        i, j = row.astype(np.intp), col.astype(np.intp)
        row -= i
        col -= j
        amount = amount * np.float32(1 / self.pixel**2)
        high = amount * row
        low = amount - high
        high_right, low_right = high * col, low * col
        flat = i * wide + j
        corners = np.concatenate([flat, flat + 1, flat + wide, flat + (wide + 1)])
        parts = np.concatenate([low - low_right, low_right, high - high_right, high_right])
        total = np.bincount(corners, weights=parts, minlength=wide * wide)
        return total.astype(np.float32).reshape(wide, wide)[2:-2, 2:-2]

    def tube(
        self,
        x: Map,
        y: Map,
        radius: Map | float,
        thickness: Map | float,
        *,
        hollow: float = 0.0,
        flat: float = 1.0,
    ) -> Ink:
        """Fill tubes along curves ``[curves, points]``; ``hollow`` is inner over outer radius.

        The profile is that of a cylinder seen from the side, so a hollow tube (bone) shows its
        cortex as two brighter edges. ``flat`` narrows the cross-section horizontally: a rib is
        a plate standing upright.
        """
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        tx, ty = slope(x), slope(y)
        step = np.sqrt(tx * tx + ty * ty) + np.float32(1e-6)
        # Midpoints across the tube, closer than a pixel or they show as moire: [across]
        across = max(3, int(np.ceil(2.6 * float(np.max(radius)) / self.pixel)))
        o = (2 * np.arange(across, dtype=np.float32) + 1) / np.float32(across) - 1
        profile = np.sqrt(1 - o * o)
        if hollow:
            profile = profile - np.float32(0.8) * np.sqrt(np.maximum(np.float32(hollow**2) - o * o, 0))
        normal = np.asarray(radius, np.float32) / step
        amount = step * step * normal * np.float32(2 / across) * np.asarray(thickness, np.float32)
        # [curves, points, across]
        px = x[..., None] - (ty * normal)[..., None] * (o * np.float32(flat))
        py = y[..., None] + (tx * normal)[..., None] * o
        return px.ravel(), py.ravel(), (amount[..., None] * profile).ravel()

    def noise(self, rng: np.random.Generator, cells: int) -> Map:
        """Draw smooth unit-variance noise with ``cells`` bumps across the frame.

        Four taps an axis rather than a matrix product: small products are slower once a
        linear-algebra library spreads them over threads.
        """
        cell, taps = _spline_taps(self.size, cells)
        knots = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
        tall = sum(taps[k][:, None] * knots[cell + k] for k in range(4))
        tall = np.ascontiguousarray(tall.T)
        wide = sum(taps[k][:, None] * tall[cell + k] for k in range(4))
        # The spline averages neighbours; on average 0.479 of the variance is left per axis.
        field: Map = wide.T * np.float32(1 / 0.479)
        return field


@lru_cache(maxsize=64)
def _spline_taps(size: int, cells: int) -> tuple[NDArray[np.intp], Map]:
    """First knot of every pixel, and its four cubic B-spline weights ``[4, S]``."""
    at = (np.arange(size) + 0.5) / size * cells
    cell = np.floor(at).astype(np.intp)
    t = at - cell
    taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    return cell, (taps / 6).astype(np.float32)


def slope(curve: Map) -> Map:
    """Central differences along the last axis, one-sided at the ends."""
    out = np.empty_like(curve)
    out[..., 1:-1] = (curve[..., 2:] - curve[..., :-2]) * np.float32(0.5)
    out[..., 0] = curve[..., 1] - curve[..., 0]
    out[..., -1] = curve[..., -1] - curve[..., -2]
    return out


def rise(value: Map, width: float) -> Map:
    """Go smoothly from 0 to 1 around zero, over about ``width`` on each side."""
    t = value * np.float32(0.5 / width) + np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    step: Map = t * t * (3 - 2 * t)
    return step


def positive(value: Map, soft: float) -> Map:
    """Keep the positive part; the corner is rounded within ``soft``, which anti-aliases edges."""
    s = np.float32(max(soft, 1e-6))
    corner = np.clip(value, -s, s) + s
    out: Map = corner * corner * (np.float32(0.25) / s) + np.maximum(value - s, 0)
    return out


def ellipse(grid: Grid, cx: float, cy: float, rx: float, ry: float, tilt: float = 0.0) -> Map:
    """Return ``1 - q``: 1 at the centre of an ellipse, 0 on its rim, negative outside."""
    c, s = np.cos(tilt), np.sin(tilt)
    x, y = grid.x - np.float32(cx), grid.y - np.float32(cy)
    u = x * np.float32(c / rx) + y * np.float32(s / rx)
    v = y * np.float32(c / ry) - x * np.float32(s / ry)
    inside: Map = 1 - u * u - v * v
    return inside


def ellipsoid(grid: Grid, cx: float, cy: float, rx: float, ry: float, depth: float, tilt: float = 0.0) -> Map:
    """Thickness of an ellipsoid seen from the front, ``depth`` at its centre."""
    inside = ellipse(grid, cx, cy, rx, ry, tilt)
    return np.float32(depth) * round_edge(inside, 1.2 * grid.pixel / min(rx, ry))


def round_edge(inside: Map, soft: float) -> Map:
    """Square root of the positive part: the profile of a convex body, zero outside."""
    return np.sqrt(positive(inside, soft))


def blend(*maps: Map) -> Map:
    """Union of thicknesses with rounded joints (a 4-norm)."""
    total = np.zeros_like(maps[0])
    for item in maps:
        square = item * item
        total += square * square
    return np.sqrt(np.sqrt(total))
