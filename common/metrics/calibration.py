"""Whether a probability means what it says: Brier score, calibration error (ECE), reliability bins.

ECE goes by two named definitions, both over 15 equal-width bins of the predicted probability
of *presence*, and the two must not be compared with each other:

- **per finding**: one finding's annotated studies (`ece`);
- **pooled**: every annotated (study, finding) decision together (`pooled_ece`). A model that is
  too sure of one finding and too timid of another can look well calibrated here.

Neither is the multi-class ECE over the winning class: findings are not exclusive. Binned ECE is
biased upwards on few studies (Roelofs et al. 2022, arXiv:2012.08668): read it beside the support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics.discrimination import annotated

BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Studies that were given similar probabilities, and how many of them have the finding."""

    studies: int
    positives: int
    mean: float
    """Mean predicted probability."""


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
    gap = np.bincount(_bin_of(p, bins), weights=p - y, minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def pooled_ece(probabilities: NDArray[Any], labels: NDArray[Any], bins: int = BINS) -> float | None:
    """Return `ece` over all annotated decisions of ``[N, F]`` arrays taken together.

    >>> round(pooled_ece(np.array([[0.8, 0.2]]), np.array([[1, np.nan]])), 6)
    0.2
    """
    return ece(np.ravel(probabilities), np.ravel(labels), bins)


def reliability_bins(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    min_cell: int = 1,
    bins: int = BINS,
    by: NDArray[Any] | None = None,
) -> tuple[ReliabilityBin, ...]:
    """Return the bins of a finding's reliability diagram, by mean probability, none of a small cell.

    Begins with the bins of `ece` and, from the lowest up, joins a bin to its neighbour above until
    each holds ``min_cell`` studies with and ``min_cell`` without the finding; what is left over at
    the top joins the last one. No bin where all studies together are too few. With ``min_cell`` at 1
    or below the bins stay as they are, without the empty ones. ``by`` are the probabilities by which
    studies are put into bins, if others: of one ranking cut in two ways, the difference of two bins
    could be a small cell. A joined bin is wide: its point says
    less than several would, and nothing of single studies.

    >>> p, y = np.array([0.1, 0.2, 0.3, 0.8, 0.9]), np.array([0, 1, 0, 1, 1])
    >>> [(b.studies, b.positives, round(b.mean, 3)) for b in reliability_bins(p, y, min_cell=2)]
    [(5, 3, 0.46)]
    """
    p, y = _known(probabilities, labels)
    index = _bin_of(p if by is None else _known(by, labels)[0], bins)
    studies, positives = np.bincount(index, minlength=bins), np.bincount(index, weights=y, minlength=bins)
    total = np.bincount(index, weights=p, minlength=bins)
    rows = np.stack([studies, positives, total], axis=1)  # [bins, 3]
    joined: list[NDArray[np.float64]] = []
    rest = np.zeros(3)
    for row in rows:
        rest = rest + row
        if _large_enough(rest, min_cell):
            joined.append(rest)
            rest = np.zeros(3)
    if joined:
        joined[-1] = joined[-1] + rest
    return tuple(ReliabilityBin(int(n), int(k), float(s / n)) for n, k, s in joined)


def _large_enough(row: NDArray[np.float64], min_cell: int) -> bool:
    studies, positives, _ = row
    return bool(studies > 0 and (min_cell <= 1 or min(positives, studies - positives) >= min_cell))


def _bin_of(p: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    """Return which of ``bins`` equal-width bins each probability lies in."""
    # The edges are compared, not multiplied out: p * 15 rounds across an edge.
    return np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], p, side="left")


def _known(probabilities: NDArray[Any], labels: NDArray[Any]) -> tuple[Any, Any]:
    p, y = annotated(probabilities, labels)
    if ((p < 0) | (p > 1)).any():
        raise DataError(
            "a probability lies outside 0 to 1",
            found=f"{p.min():g} to {p.max():g}",
            fix="apply the sigmoid to logits before measuring calibration",
        )
    return p, y
