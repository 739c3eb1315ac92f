"""Sampling studies: who comes, with which findings, how severe, and how they go together.

One latent Gaussian vector per study carries the eight findings, the age and the view. Its
correlations make findings co-occur as they do in wards (a failing heart, fluid, a line), while
each marginal prevalence stays what the population says. Study ``i`` depends on the seed and on
``i`` alone: a longer sample starts with the shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtr, ndtri

from common.errors import ConfigError, closest

FINDINGS: tuple[str, ...] = (
    "cardiomegaly",
    "effusion",
    "pneumothorax",
    "consolidation",
    "nodule",
    "edema",
    "atelectasis",
    "support_device",
)

PREVALENCE: Mapping[str, float] = {
    "cardiomegaly": 0.26,
    "effusion": 0.28,
    "pneumothorax": 0.13,
    "consolidation": 0.2,
    "nodule": 0.15,
    "edema": 0.22,
    "atelectasis": 0.24,
    "support_device": 0.3,
}

_TOGETHER: Mapping[tuple[str, str], float] = {
    ("cardiomegaly", "effusion"): 0.35,
    ("cardiomegaly", "edema"): 0.50,
    ("cardiomegaly", "support_device"): 0.22,
    ("effusion", "edema"): 0.42,
    ("effusion", "consolidation"): 0.25,
    ("effusion", "atelectasis"): 0.40,
    ("effusion", "support_device"): 0.32,
    ("pneumothorax", "support_device"): 0.30,
    ("consolidation", "atelectasis"): 0.15,
    ("consolidation", "support_device"): 0.18,
    ("edema", "support_device"): 0.30,
    ("atelectasis", "support_device"): 0.28,
    ("cardiomegaly", "age"): 0.28,
    ("effusion", "age"): 0.15,
    ("nodule", "age"): 0.20,
    ("edema", "age"): 0.18,
    ("effusion", "ap"): 0.22,
    ("edema", "ap"): 0.32,
    ("atelectasis", "ap"): 0.20,
    ("support_device", "ap"): 0.48,
}
_AXES = (*FINDINGS, "age", "ap")
_PERSISTENCE = 0.65
"""Share of the latent variance that a patient's studies have in common."""
_CONCENTRATION = 3.0
"""Sum of the Beta parameters of the severity."""


@dataclass(frozen=True)
class Population:
    """How a site's patients look.

    Raises:
        ConfigError: if a finding is unknown or a share lies outside its range.
    """

    prevalence: Mapping[str, float] = field(default_factory=lambda: dict(PREVALENCE))
    """Marginal share of studies with each finding; findings left out keep the default."""
    age_mean: float = 58.0
    age_sd: float = 17.0
    female: float = 0.48
    ap_share: float = 0.4
    severity: float = 0.5
    """Mean severity of a present finding."""
    studies_per_patient: float = 1.3
    """Mean of a geometric distribution."""

    def __post_init__(self) -> None:
        for name, share in self.prevalence.items():
            if name not in FINDINGS:
                raise ConfigError(
                    f"finding {name!r} cannot be simulated",
                    found=name,
                    fix=closest(name, FINDINGS) or f"choose among {', '.join(FINDINGS)}",
                )
            if not 0 <= share <= 0.95:
                raise ConfigError(
                    f"prevalence of {name} must lie in [0, 0.95]", found=f"{share:g}", fix="give a share"
                )
        if not 0.05 <= self.severity <= 0.95:
            raise ConfigError(
                "severity must lie in [0.05, 0.95]", found=f"{self.severity:g}", fix="0.5 is usual"
            )
        if self.studies_per_patient < 1:
            raise ConfigError(
                "studies_per_patient must be at least 1",
                found=f"{self.studies_per_patient:g}",
                fix="1 gives every patient one study",
            )


@dataclass(frozen=True)
class Cases:
    """Studies as a struct of arrays; ``n`` studies, ``F`` findings in the order of ``FINDINGS``."""

    seed: int
    index: NDArray[np.int64]
    patient: NDArray[np.int64]
    age: NDArray[np.float32]
    female: NDArray[np.bool_]
    view: NDArray[np.str_]
    severity: NDArray[np.float32]
    """``[n, F]``, 0 where the finding is absent."""

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Presence, ``[n, F]``."""
        return (self.severity > 0).astype(np.uint8)

    def __len__(self) -> int:
        return int(self.index.size)

    def take(self, indices: ArrayLike) -> Cases:
        """Select studies; they keep their index and so their picture."""
        rows = np.atleast_1d(np.asarray(indices))
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "seed"}
        return Cases(seed=self.seed, **picked)


def _correlation() -> NDArray[np.float64]:
    """Correlation of the latents, ``[A, A]``."""
    matrix = np.eye(len(_AXES))
    for (one, other), value in _TOGETHER.items():
        i, j = _AXES.index(one), _AXES.index(other)
        matrix[i, j] = matrix[j, i] = value
    return matrix


def sample_cases(n: int, *, seed: int, population: Population | None = None) -> Cases:
    """Draw ``n`` studies in the order they were taken.

    Severity is how far the latent lies beyond its threshold, so severe findings also attract
    their companions. Presence and age of one patient's studies hang together.

    >>> a, b = sample_cases(5, seed=1), sample_cases(50, seed=1)
    >>> bool((a.severity == b.severity[:5]).all())
    True

    Raises:
        ConfigError: if ``n`` is negative.
    """
    if n < 0:
        raise ConfigError("the number of studies must not be negative", found=str(n), fix="give n >= 0")
    population = population or Population()
    streams = [np.random.default_rng([seed, 11, k]) for k in range(5)]
    starts = streams[0].random(n) < 1 / population.studies_per_patient
    starts[:1] = True
    patient = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)[patient] if n else np.zeros(0, np.int64)

    root = np.linalg.cholesky(_correlation()).T
    own = streams[1].standard_normal((n, len(_AXES))) @ root
    now = streams[2].standard_normal((n, len(_AXES))) @ root
    latent = np.sqrt(_PERSISTENCE) * own[first] + np.sqrt(1 - _PERSISTENCE) * now  # [n, A]

    gaps = np.where(starts, 0.0, streams[3].exponential(0.9, n))
    elapsed = np.cumsum(gaps)
    age = population.age_mean + population.age_sd * own[first, _AXES.index("age")]
    age = np.clip(age, 18, 92) + elapsed - elapsed[first]

    share = np.array([population.prevalence.get(f, PREVALENCE[f]) for f in FINDINGS])
    beyond = ndtr(latent[:, : len(FINDINGS)]) - (1 - share)  # [n, F]
    alpha = population.severity * _CONCENTRATION
    rank = np.clip(beyond / np.maximum(share, 1e-9), 0, 1)
    severity = np.where(beyond > 0, np.maximum(betaincinv(alpha, _CONCENTRATION - alpha, rank), 0.05), 0)
    ap = latent[:, _AXES.index("ap")] > ndtri(1 - np.clip(population.ap_share, 1e-9, 1 - 1e-9))
    return Cases(
        seed=seed,
        index=np.arange(n, dtype=np.int64),
        patient=patient.astype(np.int64),
        age=age.astype(np.float32),
        female=streams[4].random(n)[first] < population.female,
        view=np.where(ap, "AP", "PA"),
        severity=severity.astype(np.float32),
    )
