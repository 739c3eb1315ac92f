"""Where findings sit in a patient: drawn once, so that image and report tell the same story."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RIGHT, LEFT, BOTH = -1, 1, 0
ZONES: tuple[str, ...] = ("upper", "middle", "lower")
DEVICES: tuple[str, ...] = ("tube", "line", "pacemaker", "leads", "drain")


@dataclass(frozen=True)
class Placement:
    """Sides as -1 (patient's right), 1 (left) or 0 (both), zones by name, the rest in [0, 1)."""

    effusion: int
    pneumothorax: int
    consolidation: int
    consolidation_zone: str
    nodule: int
    nodule_at: tuple[float, float]
    """Across (0 medial) and down (0 apical) its lung."""
    atelectasis: int
    atelectasis_band: bool
    """Plate-like bands, or else a collapsed lower lobe."""
    devices: tuple[str, ...]
    """In the order in which a rising severity adds them."""
    detail: int
    """Seed of the finer shapes."""

    def sides(self, finding: str) -> tuple[int, ...]:
        """Return the sides a one-sided finding is drawn on."""
        side = int(getattr(self, finding))
        return (RIGHT, LEFT) if side == BOTH else (side,)

    def shown_devices(self, severity: float) -> tuple[str, ...]:
        """Return one device, two from middling severity, three when severe."""
        return self.devices[: 1 + int(severity > 0.5) + int(severity > 0.8)]


def place(seed: int, patient: int) -> Placement:
    """Draw the placement of a patient's findings."""
    rng = np.random.default_rng([seed, 13, patient])
    u = rng.random(12)
    kinds = rng.permutation(len(DEVICES))
    return Placement(
        effusion=BOTH if u[0] < 0.3 else (RIGHT if u[0] < 0.68 else LEFT),
        pneumothorax=RIGHT if u[1] < 0.55 else LEFT,
        consolidation=RIGHT if u[2] < 0.55 else LEFT,
        consolidation_zone=ZONES[int(np.searchsorted([0.25, 0.5], u[3]))],
        nodule=RIGHT if u[4] < 0.55 else LEFT,
        nodule_at=(float(u[5]), float(u[6])),
        atelectasis=RIGHT if u[7] < 0.45 else LEFT,
        atelectasis_band=bool(u[8] < 0.55),
        devices=tuple(DEVICES[k] for k in kinds),
        detail=int(u[9] * 2**31),
    )
