"""What disease does to a chest: first to its shapes, then to the air in its lungs.

``deform`` changes the anatomy before anything is drawn. ``Lungs`` holds the maps that the
opacities work on, so that fluid hides the dome, an opacity hides vessels, and a nodule may lie
behind a rib. Severity ``s`` is in (0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulations.phantom.anatomy import Anatomy
from simulations.phantom.field import Grid, Map, ellipse, rise, round_edge
from simulations.phantom.placement import Placement
from simulations.phantom.soft_tissue import chest_wall, dome

Severity = Mapping[str, float]


@dataclass
class Lungs:
    """The maps a finding may change, all ``[S, S]``."""

    lost: Map
    """Share of the lung's air replaced by fluid or tissue, in [0, 1]."""
    vessels: Map
    """Factor on the vessels; negative where bronchi stand out as air."""
    free: Map
    """Share of the cavity holding free air instead of lung."""
    extra: Map
    """Added soft-tissue thickness that does not depend on the lung."""


def deform(a: Anatomy, severity: Severity, place: Placement) -> Anatomy:
    """Apply what changes outlines: heart size, dome height, shift, calibre of vessels."""
    heart = severity.get("cardiomegaly", 0.0)
    edema = severity.get("edema", 0.0)
    loss = severity.get("atelectasis", 0.0)
    air = severity.get("pneumothorax", 0.0)
    lift = (0.11 if place.atelectasis_band else 0.15) * loss
    pull = place.atelectasis * (0.02 if place.atelectasis_band else 0.07) * loss
    push = -place.pneumothorax * 0.07 * max(air - 0.45, 0.0)
    return replace(
        a,
        heart_left=a.heart_left * (1 + 0.40 * heart + 0.04 * edema),
        heart_right=a.heart_right * (1 + 0.32 * heart + 0.03 * edema),
        heart_height=a.heart_height * (1 + 0.14 * heart),
        heart_tilt=a.heart_tilt - 0.20 * heart,
        mediastinum=a.mediastinum * (1 + 0.10 * edema + 0.05 * heart),
        vessels=a.vessels * (1 + 0.24 * edema + 0.10 * heart),
        cephalised=a.cephalised + 0.20 * edema,
        dome_left=a.dome_left - (lift if place.atelectasis > 0 else 0.0),
        dome_right=a.dome_right - (lift if place.atelectasis < 0 else 0.0),
        shift=a.shift + pull + push,
    )


def apply_findings(grid: Grid, a: Anatomy, lungs: Lungs, severity: Severity, place: Placement) -> None:
    """Change ``lungs`` in place by every finding present."""
    rng = np.random.default_rng([place.detail, 1])
    wander = grid.noise(rng, 9), grid.noise(rng, 26)
    for finding, change in _CHANGES.items():
        s = severity.get(finding, 0.0)
        if s > 0:
            change(grid, a, lungs, s, place, wander)


def _lose(lungs: Lungs, share: Map) -> None:
    """Replace a share of the air that is still there."""
    lungs.lost += (1 - lungs.lost) * np.clip(share, 0, 1)


def _effusion(
    grid: Grid, a: Anatomy, lungs: Lungs, s: float, place: Placement, wander: tuple[Map, Map]
) -> None:
    height = 0.02 + 0.50 * s**1.25
    for side in place.sides("effusion"):
        level = a.dome_left if side > 0 else a.dome_right
        out = np.clip(side * grid.x / np.float32(a.chest), 0, 1)
        # The meniscus climbs along the lateral wall.
        surface = level + a.sulcus - height * (np.float32(0.50) + np.float32(0.62) * out**3)
        surface = surface + np.float32(0.010) * wander[0]
        width = (0.16 + 0.10 * s) if a.ap else 0.035 + 0.03 * s
        on_side = rise(side * (grid.x - np.float32(a.shift)), 0.04)
        fill = rise(grid.y - surface, width) * on_side * (0.62 + 0.36 * s)
        if a.ap:
            # Lying fluid spreads behind the whole lung and veils it.
            fill = fill * 0.85 + 0.16 * s * on_side * rise(grid.y + 0.35, 0.4)
        _lose(lungs, fill)
        lungs.vessels *= 1 - 0.7 * fill


def _pneumothorax(
    grid: Grid, a: Anatomy, lungs: Lungs, s: float, place: Placement, wander: tuple[Map, Map]
) -> None:
    side = place.pneumothorax
    margin = 0.012 + 0.20 * s**1.5
    half, _ = chest_wall(grid, a, margin)
    gap = side * grid.x - half - np.float32(0.006) * wander[0]  # beyond the visceral pleura
    top = np.float32(a.apex + 1.5 * margin) - grid.y
    gap = np.maximum(gap, top)
    near_base = 1 - 0.75 * rise(grid.y - np.float32(a.base - 0.15), 0.25) * (s < 0.75)
    outside = rise(gap, 1.2 * grid.pixel + 0.004) * (side * grid.x > 0.05) * near_base
    lungs.free = np.maximum(lungs.free, outside * np.float32(0.25 + 0.55 * s))
    lungs.vessels *= 1 - outside * np.float32(0.6 + 0.4 * s)
    line = np.exp(-((gap / np.float32(0.0075 + 0.5 * grid.pixel)) ** 2)) * (side * grid.x > 0.05)
    lungs.extra += np.float32(0.008 + 0.022 * s) * line * near_base
    inner = rise(-gap, 0.05) * rise(side * grid.x, 0.05)
    _lose(lungs, 0.20 * s**1.5 * inner)


def _consolidation(
    grid: Grid, a: Anatomy, lungs: Lungs, s: float, place: Placement, wander: tuple[Map, Map]
) -> None:
    rng = np.random.default_rng([place.detail, 2])
    side, zone = place.consolidation, place.consolidation_zone
    cy = {"upper": -0.38, "middle": -0.02, "lower": 0.24}[zone] + 0.05 * rng.standard_normal()
    cx = side * (0.36 + 0.06 * rng.standard_normal())
    size = (0.15 + 0.13 * s) * np.exp(0.15 * rng.standard_normal())
    inside = ellipse(grid, cx, cy, size * 1.1, size * 0.85, side * 0.5 * rng.standard_normal())
    patch = rise(inside - 0.25 + 0.28 * wander[0] + 0.16 * wander[1], 0.75)
    patch = patch * rise(side * (grid.x - np.float32(a.shift)), 0.05)
    if zone == "upper" and rng.random() < 0.5:
        # The minor fissure cuts an upper-lobe opacity off below.
        patch = patch * (1 - 0.85 * rise(grid.y - np.float32(cy + 0.10), 0.02))
    opacity = patch * (0.16 + 0.52 * s)
    _lose(lungs, opacity)
    lungs.vessels *= 1 - 2.6 * opacity * s


def _nodule(
    grid: Grid, a: Anatomy, lungs: Lungs, s: float, place: Placement, wander: tuple[Map, Map]
) -> None:
    u, v = place.nodule_at
    y = a.apex + 0.16 + v * (min(a.dome_left, a.dome_right) - a.apex - 0.24)
    t = max((a.base - y) / (a.base - a.apex), 0.0) ** a.squareness
    half = a.chest * float(np.sqrt(max(1 - t, 0.05)))
    medial = 0.19 if y < 0 else 0.30
    x = place.nodule * (medial + u * max(half - 0.07 - medial, 0.02))
    radius = 0.048 + 0.042 * s
    inside = ellipse(grid, x, y, radius, radius * 0.92, u) + np.float32(0.10) * wander[1]
    lungs.extra += np.float32(0.09 + 0.24 * s) * round_edge(inside, 0.5)


def _edema(grid: Grid, a: Anatomy, lungs: Lungs, s: float, place: Placement, wander: tuple[Map, Map]) -> None:
    rng = np.random.default_rng([place.detail, 3])
    haze = np.zeros_like(grid.x)
    for side in (-1, 1):
        away = (grid.x - np.float32(a.shift + side * 0.27)) ** 2 / np.float32(0.055)
        haze += np.exp(-away - (grid.y - np.float32(0.05)) ** 2 / np.float32(0.13))
    mottle = np.clip(1 + 0.30 * wander[1] + 0.22 * wander[0], 0.3, 1.8)
    _lose(lungs, (0.02 + 0.38 * s**1.5) * haze * mottle + 0.05 * s)
    lungs.vessels *= 1 - 0.25 * s * haze
    lines = rng.random((2, 7, 3)).astype(np.float32)
    t = np.linspace(0, 1, max(8, grid.size // 12), dtype=np.float32)
    for k, side in enumerate((-1, 1)):
        y = np.float32(a.base - 0.22) + 0.36 * lines[k, :, :1] + 0.01 * t
        wall = np.float32(a.chest - 0.015) * np.sqrt(
            np.maximum(1 - np.clip((a.base - y) / (a.base - a.apex), 0, 1) ** a.squareness, 0.1)
        )
        x = side * (wall - t * (0.06 + 0.05 * lines[k, :, 1:2]))
        lungs.extra += grid.splat(grid.tube(x, y, 0.006, 0.030 * s * s))


def _atelectasis(
    grid: Grid, a: Anatomy, lungs: Lungs, s: float, place: Placement, wander: tuple[Map, Map]
) -> None:
    rng = np.random.default_rng([place.detail, 4])
    side = place.atelectasis
    level = dome(grid, a, side)
    here = rise(side * (grid.x - np.float32(a.shift)), 0.05)
    if place.atelectasis_band:
        for k in range(1 + int(s > 0.45)):
            tilt = side * rng.uniform(-0.12, 0.35)
            centre = a.dome_right - 0.07 - 0.10 * k - 0.05 * rng.random()
            off = grid.y - np.float32(centre) - tilt * (grid.x - np.float32(side * 0.35))
            along = (side * grid.x - np.float32(0.36 + 0.06 * k)) / np.float32(0.17 + 0.05 * s)
            reach = np.exp(-((along**2) ** 2))
            width = np.float32(0.010 + 0.018 * s)
            band = np.exp(-(((off + 0.006 * wander[0]) / width) ** 2)) * reach
            lungs.extra += np.float32(0.05 + 0.10 * s) * band * here
        _lose(lungs, 0.22 * s * rise(grid.y - level + 0.13, 0.14) * here)
        return
    # Lower-lobe collapse: a wedge against the spine, its edge running down and out.
    edge = (
        side * (grid.x - np.float32(a.shift))
        - np.float32(0.10)
        - np.float32(0.42) * (grid.y - np.float32(0.0))
    )
    wedge = rise(-edge, 0.03 + 0.03 * (1 - s)) * rise(grid.y + 0.02, 0.16) * here
    _lose(lungs, (0.22 + 0.58 * s) * wedge)
    lungs.vessels *= 1 - 0.6 * s * wedge


_CHANGES = {
    "edema": _edema,
    "consolidation": _consolidation,
    "atelectasis": _atelectasis,
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "nodule": _nodule,
}
