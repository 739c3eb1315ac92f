"""The patient-level bootstrap: how far a metric would move with other patients.

Patients, not studies, are drawn with replacement: a patient's studies are alike, and drawing
them one by one would make every interval too narrow (Field and Welsh 2007,
doi:10.1111/j.1467-9868.2007.00593.x). Intervals are percentile intervals (Efron and
Tibshirani 1993, ch. 13). They speak of sampling test patients only, not of another training run,
and on a finding that is separated perfectly they collapse to a point.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

Floats = NDArray[np.float64]

BLOCK = 4_000_000
"""Weights held at once (32 MB), so memory does not grow with replicates x studies."""


def patient_codes(patients: Sequence[Hashable]) -> NDArray[np.intp]:
    """Number the patients 0, 1, ... by first appearance; one code per study.

    >>> patient_codes(["b", "a", "b"])
    array([0, 1, 0])
    """
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(patient, len(codes)) for patient in patients], dtype=np.intp)


def resamples(
    patients: Sequence[Hashable], replicates: int, generator: np.random.Generator
) -> Iterator[Floats]:
    """Yield blocks ``[r, N]`` of how often each study stands in a replicate, ``replicates`` in all.

    Every study of a patient has that patient's multiplicity.

    Raises:
        ConfigError: if ``replicates`` is negative.
    """
    if replicates < 0:
        raise ConfigError("bootstrap replicates must not be negative", found=str(replicates))
    codes = patient_codes(patients)
    groups = int(codes.max()) + 1 if codes.size else 0
    if groups == 0:
        return
    step = max(1, BLOCK // max(codes.size, groups))
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = generator.integers(0, groups, size=(rows, groups))
        drawn += groups * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        yield counts.astype(np.float64)[:, codes]


def percentile_interval(replicates: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Return the central ``level`` of the defined replicates, ``None`` if fewer than two are.

    >>> percentile_interval(np.array([0.0, 1.0, np.nan]), level=0.5)
    (0.25, 0.75)
    """
    defined = replicates[~np.isnan(replicates)]
    if defined.size < 2:
        return None
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return float(low), float(high)


def standard_error(replicates: Floats) -> float | None:
    """Return the standard deviation of the defined replicates, ``None`` if fewer than two are."""
    defined = replicates[~np.isnan(replicates)]
    return float(np.std(defined, ddof=1)) if defined.size >= 2 else None
