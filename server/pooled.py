"""AUROC over all sites' test studies together, without anyone's scores: an estimate within a bound.

A site sends, per finding, how many studies with the finding and how many without lie in which cells of a
grid that all sites share (`common.metrics.histogram`). A pair of a positive and a negative is decided
where their cells do not overlap; of a site's own pairs its AUROC tells how many are won. Of the rest none
or all may be won, which is the bound:

    low   = (sum of won pairs) / (P N)           P, N: positives and negatives of all sites together
    high  = low + (undecided pairs) / (P N)

The estimate takes undecided pairs between sites to be won as often as undecided pairs within sites are,
which is known. It is exact where sites rank alike; else the bound says how far off it may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from numpy.typing import NDArray

from common.metrics.summary import FindingMetrics, SiteMetrics

_ROUNDED = 0.0005
"""An AUROC arrives with three decimals."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PooledArea:
    """AUROC of one finding over the studies of several sites."""

    auroc: float
    """The estimate."""
    low: float
    high: float
    """Between these the AUROC of the pooled studies lies, for certain."""
    positives: int
    negatives: int
    sites: tuple[str, ...]
    """Whose studies these are."""


@dataclass(frozen=True)
class _Cells:
    """One site's studies of one finding: cells ``first`` to ``end``, in order, none overlapping."""

    first: NDArray[np.int64]
    end: NDArray[np.int64]
    positives: Floats
    negatives: Floats
    auroc: float | None


def pooled_areas(results: Mapping[str, SiteMetrics], findings: Sequence[str]) -> dict[str, PooledArea]:
    """Return the AUROC over all sites, of each finding of which sites told their cells.

    ``results`` are what the sites measured of one model. Sites that may not tell are left out: `PooledArea`
    says whose studies it speaks of. A finding that nobody has, or nobody lacks, is absent.
    """
    areas: dict[str, PooledArea] = {}
    for finding in findings:
        told = {site: _cells(metrics.findings.get(finding)) for site, metrics in sorted(results.items())}
        area = _area({site: cells for site, cells in told.items() if cells is not None})
        if area is not None:
            areas[finding] = area
    return areas


def pooled_macro(areas: Mapping[str, PooledArea]) -> tuple[float, float, float] | None:
    """Return the mean over findings of the estimate, the lower and the upper bound; None without any."""
    if not areas:
        return None
    columns = ((area.auroc, area.low, area.high) for area in areas.values())
    auroc, low, high = (fsum(column) / len(areas) for column in zip(*columns, strict=True))
    return auroc, low, high


def _cells(metrics: FindingMetrics | None) -> _Cells | None:
    covered = [part.span for part in metrics.bins if part.span is not None] if metrics else []
    if metrics is None or not covered or len(covered) != len(metrics.bins):
        return None
    positives = np.array([part.positives for part in metrics.bins], dtype=np.float64)
    studies = np.array([part.studies for part in metrics.bins], dtype=np.float64)
    first, end = np.array(covered, dtype=np.int64).T
    return _Cells(first, end, positives, studies - positives, metrics.auroc)


def _area(told: Mapping[str, _Cells]) -> PooledArea | None:
    positives = sum(int(cells.positives.sum()) for cells in told.values())
    negatives = sum(int(cells.negatives.sum()) for cells in told.values())
    pairs = positives * negatives
    if not pairs:
        return None
    low, high, between = 0.0, 0.0, 0.0  # pairs
    at_home, won_at_home = 0.0, 0.0  # of the undecided ones within sites
    for site, mine in told.items():
        own = int(mine.positives.sum()) * int(mine.negatives.sum())
        won, undecided = _against(mine, mine)
        least, most = _within(mine.auroc, own, won, won + undecided)
        low, high = low + least, high + most
        at_home += undecided
        won_at_home += (least + most) / 2 - won
        for other, theirs in told.items():
            if other != site:
                won, undecided = _against(mine, theirs)
                low, high, between = low + won, high + won + undecided, between + undecided
    share = won_at_home / at_home if at_home else 0.5
    # Of a site's own pairs the middle of what rounding leaves, of the others that share of the undecided.
    estimate = min(max((low + high - between) / 2 + share * between, low), high)
    auroc, lower, upper = (min(max(won / pairs, 0.0), 1.0) for won in (estimate, low, high))
    return PooledArea(auroc, lower, upper, positives, negatives, tuple(told))


def _against(mine: _Cells, theirs: _Cells) -> tuple[float, float]:
    """Pairs of my positives and their negatives that are won for certain, and those that are undecided.

    A cell of mine wins against all cells that end before it begins, and can win against all that begin
    before it ends.
    """
    running = np.concatenate([[0], np.cumsum(theirs.negatives)])
    won = running[np.searchsorted(theirs.end, mine.first, side="right")]
    reach = running[np.searchsorted(theirs.first, mine.end, side="left")]
    return float((mine.positives * won).sum()), float((mine.positives * (reach - won)).sum())


def _within(auroc: float | None, pairs: int, least: float, most: float) -> tuple[float, float]:
    """Bounds on the pairs that a site wins within itself: by its own AUROC, if it told one that can be."""
    if auroc is None:
        return least, most
    low, high = max(least, (auroc - _ROUNDED) * pairs), min(most, (auroc + _ROUNDED) * pairs)
    return (low, high) if low <= high else (least, most)
