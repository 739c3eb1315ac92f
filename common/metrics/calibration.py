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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics.discrimination import annotated
from common.metrics.histogram import Span, cell_of, spans

BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Studies that were given similar probabilities, and how many of them have the finding."""

    studies: int
    positives: int
    mean: float
    """Mean predicted probability."""
    span: Span | None = None
    """Cells of the common grid that it covers (`common.metrics.histogram`); None: not told."""


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
    *,
    by: NDArray[Any] | None = None,
    fine: bool = False,
) -> tuple[ReliabilityBin, ...]:
    """Return the bins of a finding's reliability diagram, by mean probability, none of a small cell.

    Each covers cells of the common grid, joined until it holds ``min_cell`` studies with and ``min_cell``
    without the finding; no bin where all studies together are too few. ``by`` are the probabilities by
    which studies are put into bins, if others of the same ranking: of one ranking cut in two ways, the
    difference of two bins could be a small cell. A wide bin's point says less than several would, and
    nothing of single studies.

    With ``min_cell`` at 1 or below there is nothing to join: with ``fine`` the bins are the cells that
    hold a study, else the filled bins of `ece`, by the probabilities themselves.

    >>> p, y = np.array([0.1, 0.2, 0.3, 0.8, 0.9]), np.array([0, 1, 0, 1, 1])
    >>> [(b.studies, b.positives, round(b.mean, 3)) for b in reliability_bins(p, y, min_cell=2)]
    [(5, 3, 0.46)]
    """
    p, y = _known(probabilities, labels)
    covered: Sequence[Span | None]
    if min_cell <= 1 and not fine:
        filled, index = np.unique(_bin_of(p, BINS), return_inverse=True)
        covered = [None] * len(filled)
    else:
        cells = cell_of(p if by is None else _known(by, labels)[0])
        covered = cut = spans(cells, y, min_cell)
        if not cut:
            return ()
        index = np.searchsorted([end for _, end in cut], cells, side="right")
    studies = np.bincount(index).tolist()
    positives, total = (np.bincount(index, weights=values).tolist() for values in (y, p))
    rows = zip(studies, positives, total, covered, strict=True)
    return tuple(ReliabilityBin(held, int(having), mass / held, span) for held, having, mass, span in rows)


def coarse_bins(bins: Sequence[ReliabilityBin]) -> tuple[ReliabilityBin, ...]:
    """Merge bins whose means lie in one fifteenth of the probability, where they are too fine to read.

    That is where there are more than `BINS`, or one holds a single study; wide ones that a site joined stay
    apart, however close. Merged bins no longer cover cells of the grid.

    >>> [(b.studies, b.mean) for b in coarse_bins([ReliabilityBin(1, 0, 0.25), ReliabilityBin(3, 1, 0.25)])]
    [(4, 0.25)]
    """
    if not too_fine([part.studies for part in bins]):
        return tuple(bins)
    groups: dict[int, list[ReliabilityBin]] = {}
    for part in bins:
        groups.setdefault(bin_of(part.mean), []).append(part)
    return tuple(_merged(groups[place]) for place in sorted(groups))


def bin_of(probability: float) -> int:
    """Return which of the bins of `ece` a probability lies in, from 0."""
    return int(_bin_of(np.array([probability]), BINS)[0])


def too_fine(studies: Sequence[int]) -> bool:
    """Whether bins of so many studies each are more than a diagram can show."""
    return len(studies) > BINS or 1 in studies


def _merged(parts: Sequence[ReliabilityBin]) -> ReliabilityBin:
    studies = sum(part.studies for part in parts)
    mean = math.fsum(part.mean * part.studies for part in parts) / studies
    return ReliabilityBin(studies, sum(part.positives for part in parts), mean)


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
