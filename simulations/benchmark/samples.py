"""A metric of one model at one site, on its test patients and on patients drawn again.

Row 0 of every array is the studies as they are, the rest are replicates. Each patient is drawn with
replacement; two models on the same studies get the same draws, so their difference is paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.metrics.bootstrap import resamples
from common.metrics.calibration import BINS
from common.metrics.discrimination import rank, weighted_auroc
from common.seeds import numpy_generator
from simulations.benchmark.scores import Scores

Floats = NDArray[np.float64]


class Draws:
    """Study weights for every set of test studies, made once."""

    def __init__(self, replicates: int) -> None:
        self.replicates = replicates
        self._weights: dict[str, Floats] = {}

    def of(self, site: str, scores: Scores) -> Floats:
        """Return weights ``[1 + R, n]``; the same for the same patients and labels at the same site."""
        identity = hashlib.sha256(scores.labels.tobytes() + scores.patients.tobytes()).hexdigest()
        key = f"{site} {identity}"
        if key not in self._weights:
            generator = numpy_generator(0, "benchmark", key)
            blocks = resamples(scores.patients.tolist(), self.replicates, generator)
            self._weights[key] = np.concatenate([np.ones((1, len(scores.patients))), *blocks])
        return self._weights[key]


def sample(metric: str, scores: Scores, weights: Floats) -> Floats | None:
    """Return a metric under each row of study weights ``[R, n]`` as ``[R]``, NaN where undefined.

    The mean over the findings that are defined in a row, but for ``pooled_ece``. None for a metric that
    needs more than test scores: MCC takes its threshold from validation studies.
    """
    if metric == "pooled_ece":
        width = scores.labels.shape[1]
        return _ece(scores.probabilities.ravel(), scores.labels.ravel(), np.repeat(weights, width, axis=1))
    if metric not in _OF_A_FINDING:
        return None
    of_finding = _OF_A_FINDING[metric]
    p, y = scores.probabilities, scores.labels
    figures = np.stack([of_finding(p[:, j], y[:, j], weights) for j in range(y.shape[1])], axis=1)  # [R, F]
    defined = (~np.isnan(figures)).sum(axis=1)
    means: Floats = np.divide(
        np.nansum(figures, axis=1), defined, out=np.full(len(figures), np.nan), where=defined > 0
    )
    return means


def _auroc(p: NDArray[np.float32], y: NDArray[np.float32], weights: Floats) -> Floats:
    return weighted_auroc(rank(p, y), weights)


def _average_precision(p: NDArray[np.float32], y: NDArray[np.float32], weights: Floats) -> Floats:
    """AP = sum_t (R_t - R_{t-1}) P_t over the distinct scores (Davis and Goadrich 2006)."""
    known = np.flatnonzero(~np.isnan(y))
    order = known[np.argsort(-p[known], kind="stable")]
    if not len(order):
        return np.full(len(weights), np.nan)
    last = np.append(np.flatnonzero(np.diff(p[order])), len(order) - 1)  # ends of ties
    drawn = weights[:, order]
    hits = np.cumsum(drawn * y[order], axis=1)[:, last]  # [R, T]
    calls = np.cumsum(drawn, axis=1)[:, last]
    precision = np.divide(hits, calls, out=np.zeros_like(hits), where=calls > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    positives, negatives = hits[:, -1], calls[:, -1] - hits[:, -1]
    area: Floats = np.divide(
        (gained * precision).sum(axis=1),
        positives,
        out=np.full(len(weights), np.nan),
        where=(positives > 0) & (negatives > 0),
    )
    return area


def _ece(p: NDArray[np.float32], y: NDArray[np.float32], weights: Floats) -> Floats:
    """ECE = sum_b |sum_{i in b} w_i (p_i - y_i)| / sum_i w_i, bins as `common.metrics.calibration`."""
    known = np.flatnonzero(~np.isnan(y))
    bins = np.searchsorted(np.linspace(0.0, 1.0, BINS + 1)[1:-1], p[known].astype(np.float64), side="left")
    gaps = np.zeros((len(known), BINS))
    gaps[np.arange(len(known)), bins] = p[known].astype(np.float64) - y[known]
    drawn = weights[:, known]
    return _share(np.abs(drawn @ gaps).sum(axis=1), drawn.sum(axis=1))


def _brier(p: NDArray[np.float32], y: NDArray[np.float32], weights: Floats) -> Floats:
    known = np.flatnonzero(~np.isnan(y))
    drawn = weights[:, known]
    return _share(drawn @ (p[known].astype(np.float64) - y[known]) ** 2, drawn.sum(axis=1))


def _share(above: Floats, below: Floats) -> Floats:
    share: Floats = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return share


_OF_A_FINDING: Mapping[str, Callable[[NDArray[np.float32], NDArray[np.float32], Floats], Floats]] = {
    "auroc": _auroc,
    "pr_auc": _average_precision,
    "ece": _ece,
    "brier": _brier,
}
