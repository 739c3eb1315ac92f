"""One study's anatomy as a flat record of numbers, drawn for a patient and then for a study.

What stays with a patient (habitus, bones, heart) comes from the patient's generator; what
changes between two visits (pose, breath) comes from the study's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.phantom.field import Pose


@dataclass(frozen=True)
class Anatomy:
    """Shapes in units of half the field of view; see ``field`` for the axes."""

    pose: Pose
    turn: float
    """Rotation about the long axis in radians."""
    ap: bool
    female: bool
    age: float
    depth: float
    """Front-to-back thickness of the trunk."""
    width: float
    """Half-width of the trunk."""
    shoulder: float
    """Height of the shoulder tops."""
    slope: float
    """How steeply the shoulders fall."""
    abduction: float
    breast: float
    breast_y: float
    chest: float
    """Half-width of the inner chest where it is widest."""
    cavity: float
    """Front-to-back depth of the inner chest."""
    apex: float
    base: float
    """Level of the greatest chest width."""
    squareness: float
    dome_right: float
    dome_left: float
    sulcus: float
    """How far the costophrenic angles lie below the domes."""
    heart_left: float
    heart_right: float
    heart_y: float
    heart_tilt: float
    heart_height: float
    heart_depth: float
    knob: float
    trunk: float
    """Bulge of the pulmonary trunk."""
    mediastinum: float
    shift: float
    """Mediastinal shift towards the patient's left."""
    hilum: float
    vessels: float
    cephalised: float
    """Extra calibre of the upper-lobe vessels."""
    rib_y: float
    rib_gap: float
    rib_slope: float
    rib_radius: float
    bone: float
    spine: float
    clavicle: float
    scapula: float
    gas: float
    air: float
    """Share of the lung that is air; the rest attenuates like water."""


def draw_anatomy(
    patient: np.random.Generator,
    study: np.random.Generator,
    *,
    age: float,
    female: bool,
    ap: bool,
) -> Anatomy:
    """Draw one study. Every quantity consumes its draw whatever the age, sex and view."""
    p, q = patient.standard_normal(40), study.standard_normal(16)
    u = patient.random(4)
    old = (age - 55) / 25
    small = 0.94 if female else 1.0
    habitus = float(np.clip(p[0], -2, 2.5))  # lean to heavy
    breath = float(np.clip(0.05 * q[0] - (0.075 if ap else 0.0) - 0.012 * habitus, -0.2, 0.11))
    ap_heart = 1.09 if ap else 1.0
    chest = (0.655 + 0.028 * p[1] + 0.012 * habitus) * (0.97 if female else 1.0)
    heart = np.exp(0.075 * p[2] + 0.035 * old + 0.02 * habitus) * ap_heart * (1 - 0.5 * breath)
    rib_gap = 0.128 + 0.004 * p[3] + 0.06 * breath
    return Anatomy(
        pose=Pose(
            scale=float(np.clip((1.16 + 0.05 * p[4] + 0.025 * q[1]) * (0.98 + 0.02 * small), 0.98, 1.36)),
            dx=float(0.025 * q[2]),
            dy=float(0.03 * q[3] + 0.04),
            roll=float((0.035 if ap else 0.014) * q[4]),
        ),
        turn=float((0.075 if ap else 0.035) * q[5]),
        ap=ap,
        female=female,
        age=age,
        depth=float(1.12 + 0.09 * habitus),
        width=float(0.90 * small + 0.06 * habitus + 0.02 * p[5]),
        shoulder=float(-0.90 + 0.035 * p[6] - (0.05 if ap else 0.0) + 0.02 * q[6]),
        slope=float(0.36 + 0.06 * p[7] - (0.07 if ap else 0.0)),
        abduction=float(0.20 + 0.09 * q[7]),
        breast=float(np.clip(0.17 + 0.05 * habitus + 0.06 * p[8], 0.04, 0.36))
        if female
        else float(max(0.03 * habitus, 0)),
        breast_y=float(0.24 + 0.05 * p[9] + 0.04 * old),
        chest=float(chest),
        cavity=float(0.88 + 0.04 * p[10] + 0.03 * old),
        apex=float(-0.735 + 0.03 * p[11] + 0.012 * habitus),
        base=float(0.30 + 0.05 * p[12] + 0.3 * breath),
        squareness=float(3.0 + 0.35 * p[13]),
        dome_right=float(0.37 + 0.035 * p[14] + breath),
        dome_left=float(0.415 + 0.035 * p[14] + 0.02 * p[15] + breath),
        sulcus=float(0.19 + 0.03 * p[16] + 0.35 * breath),
        heart_left=float(0.385 * small * heart * (1 + 0.05 * p[17])),
        heart_right=float(0.175 * small * heart * (1 + 0.07 * p[18])),
        heart_y=float(0.185 + 0.02 * p[19] + 0.55 * breath),
        heart_tilt=float(0.70 + 0.09 * p[20] - 0.12 * habitus + 0.7 * breath),
        heart_height=float(0.335 * (heart**0.5) * (1 + 0.04 * p[21])),
        heart_depth=float(0.64 + 0.04 * p[22]),
        knob=float(np.clip(0.072 + 0.012 * old + 0.008 * p[23], 0.05, 0.115)),
        trunk=float(np.clip(0.085 + 0.008 * p[24] - 0.006 * old, 0.05, 0.12)),
        mediastinum=float(0.105 + 0.008 * p[25] + 0.006 * habitus + (0.012 if ap else 0.0)),
        shift=float(0.012 * p[26]),
        hilum=float(1.0 + 0.12 * p[27]),
        vessels=float(np.exp(0.16 * p[28] + 0.06 * q[8] - 0.4 * breath)),
        cephalised=float(0.10 if ap else 0.0),
        rib_y=float(-0.735 + 0.02 * p[29]),
        rib_gap=float(rib_gap),
        rib_slope=float(0.30 + 0.04 * p[30] + 0.03 * old + 0.2 * breath),
        rib_radius=float(0.0315 + 0.002 * p[31]) * small,
        bone=float(
            np.clip(1.0 - 0.13 * max(old, 0) - (0.06 * max(old, 0) if female else 0) + 0.1 * p[32], 0.6, 1.3)
        ),
        spine=float(0.085 + 0.005 * p[33]) * small,
        clavicle=float(-0.50 + 0.025 * p[34] + (-0.05 if ap else 0.0) + 0.015 * q[9]),
        scapula=float((0.0 if ap else 0.13) + 0.03 * q[10] + 0.02 * p[35]),
        gas=float(np.clip(u[0] * 1.5 - 0.35, 0, 1)),
        air=float(np.clip(0.765 + 0.018 * p[36] + 0.25 * breath, 0.68, 0.84)),
    )
