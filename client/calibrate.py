"""What a site says of its validation studies when the sites calibrate a model, and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics.platt import logits, objective, site_sums
from common.protocol import Value


def platt_metrics(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    findings: Sequence[str],
    asked: Mapping[str, Sequence[float]],
    min_cell: int,
) -> dict[str, Value]:
    """Return the sums for Platt scaling of ``[N, F]`` validation studies, as an answer's metrics.

    ``asked`` holds the slope and bias at which each finding is asked for. A finding that fewer than
    ``min_cell`` studies have, or lack, is left out; with ``min_cell`` at 1, one that nobody
    annotated. Each finding told has ``FINDING.positives``, ``FINDING.negatives`` and
    ``FINDING.platt``, the eight sums of `common.metrics.platt.PlattSums`.

    Raises:
        DataError: if the arrays do not fit the findings, or a probability is not within 0 to 1.
    """
    if probabilities.shape != labels.shape or probabilities.shape[1:] != (len(findings),):
        raise DataError(
            "scores and labels must be [studies, findings]",
            found=f"scores {probabilities.shape}, labels {labels.shape}, {len(findings)} findings",
        )
    told: dict[str, Value] = {}
    for j, finding in enumerate(findings):
        positives, negatives = int((labels[:, j] == 1).sum()), int((labels[:, j] == 0).sum())
        enough = min(positives, negatives) >= min_cell or (min_cell <= 1 and positives + negatives > 0)
        if finding not in asked or not enough:
            continue
        slope, bias = asked[finding]
        known = ~np.isnan(labels[:, j])
        sums = site_sums(logits(probabilities[known, j]), labels[known, j], float(slope), float(bias))
        told[f"{finding}.positives"], told[f"{finding}.negatives"] = sums.positives, sums.negatives
        told[f"{finding}.platt"] = sums.to_list()
    return told


def own_bias(
    probabilities: NDArray[Any], labels: NDArray[Any], slope: NDArray[Any], bias: NDArray[Any]
) -> NDArray[np.float64]:
    """Return what this site adds to the common bias of each finding ``[F]``; it stays here.

    The maximum of the likelihood of its own ``[N, F]`` validation studies over the bias alone, with
    Platt's targets of its own counts, so that a handful of studies moves it less. 0 where the site has no
    study with a finding, or none without it.

    Raises:
        DataError: if a probability of an annotated study is not within 0 to 1.
    """
    added = np.zeros(len(slope))
    for j in range(len(slope)):
        known = ~np.isnan(labels[:, j])
        truth = labels[known, j]
        if 0 < truth.sum() < truth.size:
            z = logits(probabilities[known, j])
            added[j] = _best_bias(z, truth, float(slope[j]), float(bias[j])) - bias[j]
    return added


def _best_bias(z: NDArray[Any], labels: NDArray[Any], slope: float, bias: float) -> float:
    """Find where the gradient in the bias is zero; it grows with the bias, so between bounds it is there."""
    reach = abs(slope) * float(np.abs(z).max()) + 2 * np.log(labels.size + 2.0)  # no target is more extreme
    low, high, here = -reach, reach, min(max(bias, -reach), reach)
    for _ in range(_STEPS):
        found = objective(site_sums(z, labels, slope, here), slope, here)
        gradient, curvature = float(found.gradient[1]), float(found.hessian[1, 1])
        low, high = (low, here) if gradient > 0 else (here, high)
        step = here - gradient / curvature if curvature > 0 else low
        before, here = here, step if low < step < high else (low + high) / 2
        if abs(here - before) < _NEAR:
            break
    return here


_STEPS, _NEAR = 200, 1e-10
"""Newton's steps, halved where they leave the bounds, end after a handful."""
