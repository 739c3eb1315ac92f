"""What a site says of its validation studies when the sites calibrate a model together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics.platt import logits, site_sums
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
