"""From cases to radiographs: thickness of tissue and bone, then a display curve.

The image is the logarithm of what a detector would count, through a fixed sigmoid: air dark,
bone and fluid bright. Everything a scanner does comes later (``scanner``).
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from simulations.phantom.anatomy import draw_anatomy
from simulations.phantom.cases import FINDINGS, Cases
from simulations.phantom.devices import device_map
from simulations.phantom.field import Grid, Map
from simulations.phantom.findings import Lungs, apply_findings, deform
from simulations.phantom.marker import laterality
from simulations.phantom.placement import place
from simulations.phantom.skeleton import RIBS, clavicles, ribs, scapulae, shoulders, spine
from simulations.phantom.soft_tissue import (
    airway,
    below_diaphragm,
    body,
    breasts,
    cavity,
    mediastinum,
    stomach,
)
from simulations.phantom.vessels import vessels

BONE = 2.0
"""Attenuation of bone over that of water at chest energies."""
_CENTRE, _SPREAD = 0.78, 0.205
_CHUNK = 64
"""Pictures drawn by a process at a time."""


def render(cases: Cases, size: int = 128, *, workers: int = 1) -> NDArray[np.float32]:
    """Draw every case, ``[n, size, size]`` in [0, 1], bright where little radiation arrives.

    A picture depends on its own case only, not on its neighbours nor on ``workers``, the number
    of processes. A script that asks for several needs the usual ``__main__`` guard.

    Raises:
        ConfigError: if ``size`` is below 32.
    """
    if size < 32:
        raise ConfigError("images must be at least 32 pixels wide", found=str(size), fix="128 is usual")
    if workers > 1 and len(cases) > 2 * _CHUNK:
        chunks = [
            cases.take(rows) for rows in np.array_split(np.arange(len(cases)), -(-len(cases) // _CHUNK))
        ]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            return np.concatenate(list(pool.map(partial(render, size=size), chunks)))
    out = np.empty((len(cases), size, size), np.float32)
    for row in range(len(cases)):
        out[row] = _render_one(cases, row, size)
    return out


def _render_one(cases: Cases, row: int, size: int) -> Map:
    patient, index = int(cases.patient[row]), int(cases.index[row])
    bones = np.random.default_rng([cases.seed, 17, patient])
    today = np.random.default_rng([cases.seed, 19, index])
    severity = {f: float(s) for f, s in zip(FINDINGS, cases.severity[row], strict=True)}
    where = place(cases.seed, patient)
    healthy = draw_anatomy(
        bones,
        today,
        age=float(cases.age[row]),
        female=bool(cases.female[row]),
        ap=str(cases.view[row]) == "AP",
    )
    a = deform(healthy, severity, where)
    grid = Grid.of(size, a.pose)

    exposure = 0.022 * today.standard_normal()
    wobble = bones.standard_normal((2, RIBS)).astype(np.float32)
    texture = grid.noise(bones, 6), grid.noise(bones, 14), grid.noise(bones, 40)
    heart = mediastinum(grid, a)
    room = cavity(grid, a)
    gone = below_diaphragm(grid, a)
    air = np.maximum(room - heart, 0) * (1 - gone)
    shown = np.clip(air * np.float32(1 / 0.30), 0, 1) ** 2

    lungs = Lungs(np.zeros_like(air), np.ones_like(air), np.zeros_like(air), np.zeros_like(air))
    apply_findings(grid, a, lungs, severity, where)
    share: Map = np.float32(a.air) * (1 + np.float32(0.022) * texture[1] + np.float32(0.018) * texture[2])
    share = share + (1 - share) * lungs.free
    trunk = body(grid, a)
    soft = trunk * (1 + np.float32(0.030) * texture[0]) + breasts(grid, a)
    soft -= share * air * (1 - lungs.lost)
    soft += np.float32(1.4) * grid.splat(*vessels(grid, a, bones)) * shown * lungs.vessels
    soft += lungs.extra * np.minimum(shown * 1.5, 1)
    soft -= airway(grid, a) + stomach(grid, a)
    bone = grid.splat(ribs(grid, a, wobble), clavicles(grid, a), scapulae(grid, a))
    bone += spine(grid, a) + shoulders(grid, a)
    # Scatter veils the lower ribs in the abdomen.
    bone *= np.minimum(trunk * 3, 1) * (1 - np.float32(0.5) * gone)
    path = np.maximum(soft, 0) + np.float32(BONE) * bone
    if severity["support_device"] > 0:
        path += np.float32(BONE) * device_map(grid, a, severity["support_device"], where)
    # Automatic exposure: a thick patient gets more radiation, not a whiter picture.
    centre = np.float32(_CENTRE + 1.05 * (a.depth - 1.12) + 0.30 * max(a.breast - 0.1, 0.0) + exposure)
    image = 1 / (1 + np.exp((centre - path) / np.float32(_SPREAD)))
    return laterality(image.astype(np.float32), today)
