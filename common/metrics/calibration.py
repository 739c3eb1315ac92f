"""Whether a probability means what it says: Brier score and expected calibration error (ECE).

ECE goes by two named definitions, both over 15 equal-width bins of the predicted probability
of *presence*, and the two must not be compared with each other:

- **per finding**: one finding's annotated studies (`ece`);
- **pooled**: every annotated (study, finding) decision together (`pooled_ece`). A model that is
  too sure of one finding and too timid of another can look well calibrated here.

Neither is the multi-class ECE over the winning class: findings are not exclusive. Binned ECE is
biased upwards on few studies (Roelofs et al. 2022, arXiv:2012.08668): read it beside the support.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics.discrimination import annotated

BINS = 15


def brier(probabilities: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Return mean (p - y)^2 over the annotated studies (Brier 1950), ``None`` if there are none.

    Lower is better; always predicting the prevalence q scores q (1 - q).

    >>> brier(np.array([0.25, 0.75, 0.5]), np.array([0, 1, np.nan]))
    0.0625
    """
    p, y = _known(probabilities, labels)
    return float(np.mean((p - y) ** 2)) if p.size else None


def ece(probabilities: NDArray[Any], labels: NDArray[Any], bins: int = BINS) -> float | None:
    """Return ECE = sum_b (n_b / n) |mean p in b - share present in b|, ``None`` without studies.

    Bin b covers ((b-1)/bins, b/bins], as in Guo et al. 2017 (arXiv:1706.04599, eq. 3), p = 0 in
    the first. For one finding this is the *per finding* definition.

    >>> round(ece(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0])), 6)
    0.15
    """
    p, y = _known(probabilities, labels)
    if not p.size:
        return None
    # The edges are compared, not multiplied out: p * 15 rounds across an edge.
    index = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], p, side="left")
    gap = np.bincount(index, weights=p - y, minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def pooled_ece(probabilities: NDArray[Any], labels: NDArray[Any], bins: int = BINS) -> float | None:
    """Return `ece` over all annotated decisions of ``[N, F]`` arrays taken together.

    >>> round(pooled_ece(np.array([[0.8, 0.2]]), np.array([[1, np.nan]])), 6)
    0.2
    """
    return ece(np.ravel(probabilities), np.ravel(labels), bins)


def _known(probabilities: NDArray[Any], labels: NDArray[Any]) -> tuple[Any, Any]:
    p, y = annotated(probabilities, labels)
    if ((p < 0) | (p > 1)).any():
        raise DataError(
            "a probability lies outside 0 to 1",
            found=f"{p.min():g} to {p.max():g}",
            fix="apply the sigmoid to logits before measuring calibration",
        )
    return p, y
