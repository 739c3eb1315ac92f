"""How well scores separate presence from absence: AUROC, average precision, MCC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, LabelError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """One finding's scores, sorted once so that every reweighting costs O(studies).

    ``positives`` (P) and ``negatives`` (Q, in ascending score order) index the studies.
    Of the sorted negatives, the first ``below[i]`` score under positive ``i`` and the first
    ``up_to[i]`` score under it or the same.
    """

    positives: NDArray[np.intp]
    negatives: NDArray[np.intp]
    below: NDArray[np.intp]
    up_to: NDArray[np.intp]


def annotated(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return scores and labels in float64 without the studies whose label is NaN.

    Raises:
        DataError: if the lengths differ, or an annotated study's score is not finite.
        LabelError: if a label is not 1, 0 or NaN.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.float64)
    if values.ndim != 1 or values.shape != truth.shape:
        raise DataError(
            "scores and labels must be vectors of one length",
            found=f"scores {values.shape}, labels {truth.shape}",
        )
    known = ~np.isnan(truth)
    values, truth = values[known], truth[known]
    if not np.isin(truth, (0.0, 1.0)).all():
        raise LabelError("a label must be 1, 0 or NaN (not annotated)")
    if not np.isfinite(values).all():
        raise DataError(
            "a score is NaN or infinite",
            found=f"{int((~np.isfinite(values)).sum())} of {values.size} scores",
            fix="look at the model that made them; metrics over them would mislead",
        )
    return values, truth


def rank(scores: NDArray[Any], labels: NDArray[Any]) -> Ranking:
    """Sort a finding's annotated studies for `weighted_auroc`; scores and labels are ``[N]``."""
    annotated(scores, labels)
    values = np.asarray(scores, dtype=np.float64)
    positives = np.flatnonzero(np.asarray(labels) == 1)
    negatives = np.flatnonzero(np.asarray(labels) == 0)
    positives = positives[np.argsort(values[positives], kind="stable")]
    negatives = negatives[np.argsort(values[negatives], kind="stable")]
    return Ranking(
        positives=positives,
        negatives=negatives,
        below=np.searchsorted(values[negatives], values[positives], side="left"),
        up_to=np.searchsorted(values[negatives], values[positives], side="right"),
    )


def weighted_auroc(ranking: Ranking, weights: Floats) -> Floats:
    """Return the AUROC under each row of study weights ``[R, N]`` as ``[R]``, NaN where undefined.

    AUC = sum_i w_i (Q(<s_i) + Q(<=s_i)) / 2 / (P Q): the Mann-Whitney statistic over positives
    i, a tie counted as one half (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747).
    Q(<s) is a lookup in the running sum of the negatives' weights, so R replicates cost
    O(R N) after the one sort in `rank`.
    """
    rows = weights.shape[0]
    positive = weights[:, ranking.positives]  # [R, P]
    running = np.zeros((rows, ranking.negatives.size + 1))
    np.cumsum(weights[:, ranking.negatives], axis=1, out=running[:, 1:])  # [R, Q + 1]
    beaten = running[:, ranking.below] + running[:, ranking.up_to]  # [R, P], twice the count
    wins = 0.5 * np.einsum("rp,rp->r", positive, beaten)
    pairs = positive.sum(axis=1) * running[:, -1]
    areas: Floats = np.divide(wins, pairs, out=np.full(rows, np.nan), where=pairs > 0)
    return areas


def auroc(scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any] | None = None) -> float | None:
    """Return the chance that a positive outscores a negative, ties as one half.

    ``None`` when only one class carries weight: undefined, never 0.5.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    >>> auroc(np.array([0.1, 0.4]), np.array([0, np.nan])) is None
    True
    """
    row = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    area = float(weighted_auroc(rank(scores, labels), row[None, :])[0])
    return None if np.isnan(area) else area


def average_precision(scores: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Return the area under the precision-recall steps, AP = sum_t (R_t - R_{t-1}) P_t.

    No interpolation: the straight line between two points of a PR curve is not attainable
    (Davis and Goadrich 2006, doi:10.1145/1143844.1143874). Chance level is the prevalence,
    so read the two side by side. ``None`` for a single class.

    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.8333333333333333
    """
    values, truth = annotated(scores, labels)
    positives = truth.sum()
    if positives == 0 or positives == truth.size:
        return None
    hits, calls, _ = _at_thresholds(values, truth)
    recall = np.concatenate([[0.0], hits / positives])
    return float(np.sum(np.diff(recall) * hits / calls))


def mcc(called: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Return Matthews' correlation of binary calls with labels (Matthews 1975).

    MCC = (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)); 0 when every call is the same,
    its limit there (Chicco and Jurman 2020, doi:10.1186/s12864-019-6413-7). ``None`` when
    the labels are of a single class.

    >>> mcc(np.array([True, True, False, False]), np.array([1, 0, 0, 0]))
    0.5773502691896258
    """
    values, truth = annotated(called, labels)
    positives = truth.sum()
    if positives == 0 or positives == truth.size:
        return None
    return float(_mcc(np.array([(values * truth).sum()]), np.array([values.sum()]), truth)[0])


def best_threshold(scores: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Return the threshold t at which calling ``score >= t`` gives the highest MCC.

    Choose it on validation studies and apply it to test studies: chosen on the studies it
    is judged by, it flatters. It lies midway between two observed scores, so it does not hang
    on one study's rounding; of equally good ones the highest wins. ``None`` for a single class.

    >>> best_threshold(np.array([0.1, 0.2, 0.6, 0.8]), np.array([0, 0, 1, 1]))
    0.4
    """
    values, truth = annotated(scores, labels)
    positives = truth.sum()
    if positives == 0 or positives == truth.size:
        return None
    hits, calls, cuts = _at_thresholds(values, truth)
    best = int(np.argmax(_mcc(hits, calls, truth)))
    lower = cuts[best + 1] if best + 1 < cuts.size else cuts[best]
    middle = float(0.5 * (cuts[best] + lower))
    return middle if middle > lower else float(cuts[best])


def _at_thresholds(values: Floats, truth: Floats) -> tuple[Floats, Floats, Floats]:
    """True positives, positive calls and cut at each distinct score, highest score first."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    return np.cumsum(truth[order])[last], last + 1.0, ranked[last]


def _mcc(hits: Floats, calls: Floats, truth: Floats) -> Floats:
    positives, total = truth.sum(), float(truth.size)
    negatives = total - positives
    # TP TN - FP FN = TP total - calls positives, free of cancellation between large products.
    above = hits * total - calls * positives
    below = np.sqrt(calls * (total - calls) * positives * negatives)
    correlation: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return correlation
