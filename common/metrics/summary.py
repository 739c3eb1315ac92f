"""A site's test result: metrics per finding, their macro mean, and paired comparisons.

The macro AUROC is the plain mean over the findings that are *defined* (both classes present and
at least ``min_cell`` of each). Which findings those are is read from ``findings``: two macros over
different findings do not compare. In a replicate where a finding has a single class, that finding
is left out of that replicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataError
from common.metrics.bootstrap import percentile_interval, resamples, standard_error
from common.metrics.calibration import ReliabilityBin, brier, ece, pooled_ece, reliability_bins
from common.metrics.discrimination import Ranking, average_precision, mcc, rank, weighted_auroc

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class FindingMetrics:
    """One finding at one site. ``None`` is undefined or suppressed, never a chance level.

    Suppressed by ``min_cell``: all ``None`` and both counts 0. Of a single class: AUROC and
    PR-AUC are ``None``, the counts true.
    """

    auroc: float | None
    interval: Interval | None
    pr_auc: float | None
    prevalence: float | None
    ece: float | None
    """By the definition *per finding* (`common.metrics.calibration`)."""
    brier: float | None
    positives: int
    negatives: int
    bins: tuple[ReliabilityBin, ...] = ()
    """Of its reliability diagram; none has fewer than ``min_cell`` positives or negatives."""
    mcc: float | None = None
    """Matthews' correlation at the threshold that is best on the site's validation studies."""


@dataclass(frozen=True)
class SiteMetrics:
    """One model on one site's test studies."""

    studies: int
    macro_auroc: float | None
    macro_interval: Interval | None
    macro_se: float | None
    """Bootstrap standard error of the macro AUROC."""
    pooled_ece: float | None
    """By the definition *pooled*, over the findings that are not suppressed."""
    findings: dict[str, FindingMetrics]


@dataclass(frozen=True)
class Difference:
    """Candidate minus reference on the same patients; above 0 the candidate is better."""

    difference: float
    interval: Interval
    se: float


def evaluate_scores(
    probabilities: NDArray[np.float32],
    labels: NDArray[Any],
    patients: Sequence[str | int],
    findings: Sequence[str],
    *,
    replicates: int = 200,
    generator: np.random.Generator,
    min_cell: int = 1,
    ranked_by: NDArray[Any] | None = None,
    thresholds: Sequence[float | None] = (),
    histograms: bool = False,
) -> SiteMetrics:
    """Measure probabilities ``[N, F]`` against labels ``[N, F]`` (1, 0, NaN = not annotated).

    A finding with fewer than ``min_cell`` positives or negatives is suppressed: no count and no
    metric of it leaves, not even within the macro or the pooled ECE. ``ranked_by`` are probabilities
    ``[N, F]`` of the same ranking by which studies come into reliability bins and are called, if not by
    their own. ``thresholds`` ``[F]``, chosen on other studies, are where they are called to have a finding,
    None where there is none. With ``histograms`` the bins say which cells of the common grid they cover.

    Raises:
        DataError: if shapes disagree or an annotated probability is not within 0 to 1.
        LabelError: if a label is not 1, 0 or NaN.
    """
    _check(probabilities, labels, patients, findings)
    told = _told(labels, min_cell)
    rankings = _rankings(probabilities, labels, told)
    areas = _areas(rankings, np.ones((1, len(labels))))[0]  # [F]
    samples = _bootstrap(rankings, patients, replicates, generator)  # [R, F]
    macros = _mean(samples)
    shown = np.where(told, labels, np.nan)
    ranked = probabilities if ranked_by is None else ranked_by
    bins = [
        reliability_bins(probabilities[:, j], shown[:, j], min_cell, by=ranked[:, j], fine=histograms)
        for j in range(len(findings))
    ]
    cuts = thresholds or (None,) * len(findings)
    return SiteMetrics(
        studies=len(labels),
        macro_auroc=_number(_mean(areas[None, :])[0]),
        macro_interval=percentile_interval(macros),
        macro_se=standard_error(macros),
        pooled_ece=pooled_ece(probabilities, shown),
        findings={
            finding: _finding(
                probabilities[:, j],
                shown[:, j],
                areas[j],
                samples[:, j],
                bins[j] if histograms else tuple(replace(part, span=None) for part in bins[j]),
                _mcc_at(ranked[:, j], shown[:, j], cuts[j]),
            )
            for j, finding in enumerate(findings)
        },
    )


def compare_scores(
    candidate: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: NDArray[Any],
    patients: Sequence[str | int],
    findings: Sequence[str],
    *,
    replicates: int,
    generator: np.random.Generator,
    min_cell: int = 1,
) -> tuple[Difference | None, dict[str, Difference]]:
    """Return the AUROC difference of two models on one site's test: macro, and per finding.

    Both are measured on every resample of the same patients, so what makes a test patient hard
    for both cancels and the interval is narrower than two separate ones would suggest.
    A finding that is undefined or suppressed is absent.

    Raises:
        ConfigError: if ``replicates`` is below 2: a difference without an interval is not given.
        DataError, LabelError: as `evaluate_scores`.
    """
    if replicates < 2:
        raise ConfigError("a paired bootstrap needs at least 2 replicates", found=str(replicates))
    _check(candidate, labels, patients, findings)
    _check(reference, labels, patients, findings)
    told = _told(labels, min_cell)
    one = np.ones((1, len(labels)))
    pair = (_rankings(candidate, labels, told), _rankings(reference, labels, told))
    gaps = (_areas(pair[0], one) - _areas(pair[1], one))[0]  # [F]
    width = len(findings)
    both = _bootstrap(pair[0] + pair[1], patients, replicates, generator)  # [R, 2 F]
    samples = both[:, :width] - both[:, width:]
    macro = _difference(_mean(gaps[None, :])[0], _mean(samples))
    each = {name: _difference(gaps[j], samples[:, j]) for j, name in enumerate(findings)}
    return macro, {name: gap for name, gap in each.items() if gap is not None}


def _finding(
    p: NDArray[Any],
    y: NDArray[Any],
    area: float,
    samples: Floats,
    bins: tuple[ReliabilityBin, ...],
    correlation: float | None,
) -> FindingMetrics:
    positives, negatives = int((y == 1).sum()), int((y == 0).sum())
    return FindingMetrics(
        auroc=_number(area),
        interval=percentile_interval(samples),
        pr_auc=average_precision(p, y),
        prevalence=positives / (positives + negatives) if positives + negatives else None,
        ece=ece(p, y),
        brier=brier(p, y),
        positives=positives,
        negatives=negatives,
        bins=bins,
        mcc=correlation,
    )


def _mcc_at(scores: NDArray[Any], labels: NDArray[Any], threshold: float | None) -> float | None:
    """MCC of calling every score from the threshold up; None without one, or of a single class."""
    return None if threshold is None else mcc(scores >= threshold, labels)


def _told(labels: NDArray[Any], min_cell: int) -> NDArray[np.bool_]:
    """Which findings may be told: with ``min_cell`` at 1 or below, all of them."""
    fewest = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0))
    told: NDArray[np.bool_] = (fewest >= min_cell) | (min_cell <= 1)
    return told


def _rankings(scores: NDArray[Any], labels: NDArray[Any], told: NDArray[np.bool_]) -> list[Ranking | None]:
    """Rank each finding, ``None`` where it is suppressed or of a single class."""
    usable = told & (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    return [rank(scores[:, j], labels[:, j]) if usable[j] else None for j in range(len(told))]


def _areas(rankings: Sequence[Ranking | None], weights: Floats) -> Floats:
    """AUROC ``[R, F]`` of each ranking under study weights ``[R, N]``, NaN where undefined."""
    areas = np.full((len(weights), len(rankings)), np.nan)
    for j, ranking in enumerate(rankings):
        if ranking is not None:
            areas[:, j] = weighted_auroc(ranking, weights)
    return areas


def _bootstrap(
    rankings: Sequence[Ranking | None],
    patients: Sequence[str | int],
    replicates: int,
    generator: np.random.Generator,
) -> Floats:
    """AUROC ``[R, F]`` under resampled patients; with fewer than two patients, no rows."""
    none = np.empty((0, len(rankings)))
    if len(set(patients)) < 2:
        return none
    blocks = resamples(patients, replicates, generator)
    return np.concatenate([none, *(_areas(rankings, weights) for weights in blocks)])


def _mean(areas: Floats) -> Floats:
    """Mean over the defined findings of each row ``[R, F]``, NaN for a row without any."""
    defined = (~np.isnan(areas)).sum(axis=1)
    total = np.nansum(areas, axis=1)
    means: Floats = np.divide(total, defined, out=np.full(len(areas), np.nan), where=defined > 0)
    return means


def _difference(gap: float, samples: Floats) -> Difference | None:
    interval, se = percentile_interval(samples), standard_error(samples)
    if np.isnan(gap) or interval is None or se is None:
        return None
    return Difference(float(gap), interval, se)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _check(
    scores: NDArray[Any], labels: NDArray[Any], patients: Sequence[object], findings: Sequence[str]
) -> None:
    expected = (len(patients), len(findings))
    if scores.shape != expected or labels.shape != expected:
        raise DataError(
            "scores and labels must be [patients, findings]",
            found=f"scores {scores.shape}, labels {labels.shape}, expected {expected}",
        )
