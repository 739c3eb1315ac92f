"""Answers with intervals: paired differences over seeds, sites and patients.

Seeds cross sites: every site is measured with every seed. Seeds and sites are drawn again each by
itself, and within a site its patients (the pigeonhole bootstrap: Owen 2007, doi:10.1214/07-AOAS122; it
errs to the wide side). The interval therefore speaks of other seeds, other patients and, as far as a few
can tell, other sites. With a single seed or a single site nothing is said about others of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.metrics.bootstrap import percentile_interval
from common.seeds import numpy_generator
from simulations.benchmark.cells import Cell, matches
from simulations.benchmark.grid import ARM, LOWER_IS_BETTER, SEED, Contrast, Grid, Metric
from simulations.benchmark.results import Failure, Found, Result, macro_rows
from simulations.benchmark.samples import Draws, sample
from simulations.benchmark.scores import Scores, read_scores

Floats = NDArray[np.float64]
Unit = tuple[int, str]
"""Seed and site."""
FEDERATED = "federated"
TIE = 5e-4
"""Differences below this are none: figures are told with three decimals."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and sites, and its 95 % interval."""

    value: float
    interval: tuple[float, float] | None
    """None where nothing was drawn again: one seed, one site, no scores of single patients."""
    seeds: int
    sites: int


@dataclass(frozen=True)
class Outcome:
    """A row of a contrast: what came of it at one value of its ``by``."""

    contrast: Contrast
    at: Mapping[str, Any]
    """Values of ``by``; empty without."""
    difference: Estimate | None
    """First minus second; None where no pair is finished."""
    wins: int = 0
    """Pairs of seed and site at which the first is better."""
    losses: int = 0
    ties: int = 0
    left_out: int = 0
    """Pairs of cells of which one failed."""

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``unclear``: where the interval leaves zero out, and to which side."""
        if self.difference is None or self.difference.interval is None:
            return "unclear"
        low, high = self.difference.interval
        if low <= 0.0 <= high:
            return "unclear"
        return "better" if (low > 0) != (self.contrast.metric in LOWER_IS_BETTER) else "worse"


@dataclass
class Figures:
    """The cells that count, with their figures at hand."""

    found: Found
    place: Callable[[Cell], Path]
    """Where a cell lies."""
    replicates: int
    _draws: Draws = field(init=False)
    _scores: dict[str, dict[tuple[str, str], Scores]] = field(default_factory=dict)
    _samples: dict[tuple[str, str, str], dict[str, Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._draws = Draws(self.replicates)

    def samples(self, cell: Cell, result: Result, arm: str, metric: Metric) -> Mapping[str, Floats]:
        """Return site -> the metric ``[1 + R]`` under an arm, the first as measured.

        A metric that cannot be drawn again is the same in every replicate.
        """
        key = (cell.digest, arm, metric)
        if key not in self._samples:
            self._samples[key] = dict(self._sampled(cell, result, arm, metric))
        return self._samples[key]

    def _sampled(self, cell: Cell, result: Result, arm: str, metric: Metric) -> Iterable[tuple[str, Floats]]:
        if cell.digest not in self._scores:
            self._scores[cell.digest] = read_scores(self.place(cell))
        for site, row in macro_rows(result, arm).items():
            scores = self._scores[cell.digest].get((arm, site))
            drawn = None if scores is None else sample(metric, scores, self._draws.of(site, scores))
            told = getattr(row, metric)
            if drawn is not None and not np.isnan(drawn[0]):
                yield site, drawn
            elif told is not None:
                yield site, np.full(1 + self.replicates, told)

    def mean(self, chosen: Mapping[str, Any], metric: Metric) -> Estimate | None:
        """Return the mean over seeds and sites of the cells, and the arm, that a filter names."""
        units: dict[Unit, list[Floats]] = {}
        arm, wanted = _split(chosen)
        for cell, result in self.found:
            if isinstance(result, Result) and matches(cell.coordinates, wanted):
                for site, drawn in self.samples(cell, result, arm, metric).items():
                    units.setdefault((cell.coordinates[SEED], site), []).append(drawn)
        return estimate(_means(units))

    def by_site(self, chosen: Mapping[str, Any], metric: Metric) -> Mapping[str, float]:
        """Return site -> mean over seeds."""
        found: dict[str, list[float]] = {}
        arm, wanted = _split(chosen)
        for cell, result in self.found:
            if isinstance(result, Result) and matches(cell.coordinates, wanted):
                for site, drawn in self.samples(cell, result, arm, metric).items():
                    found.setdefault(site, []).append(float(drawn[0]))
        return {site: float(np.mean(values)) for site, values in found.items()}


def outcomes(contrast: Contrast, figures: Figures) -> list[Outcome]:
    """Answer a contrast: a row for each value of its ``by``."""
    first_arm, first = _split(contrast.first)
    second_arm, second = _split(contrast.second)
    # A coordinate that both filters name alike is the same on both sides: it still pairs.
    apart = {key for key in {*first, *second} if first.get(key) != second.get(key)}
    against: dict[tuple[Any, ...], list[tuple[Cell, Result | Failure]]] = {}
    for cell, result in figures.found:
        if matches(cell.coordinates, second):
            against.setdefault(_rest(cell, apart), []).append((cell, result))
    groups: dict[tuple[Any, ...], dict[Unit, list[Floats]]] = {}
    left_out: dict[tuple[Any, ...], int] = {}
    for cell, result in figures.found:
        if not matches(cell.coordinates, first):
            continue
        at = tuple(cell.coordinates[key] for key in contrast.by)
        units = groups.setdefault(at, {})
        for other, reference in against.get(_rest(cell, apart), []):
            if isinstance(result, Failure) or isinstance(reference, Failure):
                left_out[at] = left_out.get(at, 0) + 1
                continue
            mine = figures.samples(cell, result, first_arm, contrast.metric)
            theirs = figures.samples(other, reference, second_arm, contrast.metric)
            for site in sorted(mine.keys() & theirs.keys()):
                unit = (cell.coordinates[SEED], site)
                units.setdefault(unit, []).append(mine[site] - theirs[site])
    return [
        _outcome(contrast, dict(zip(contrast.by, at, strict=True)), _means(units), left_out.get(at, 0))
        for at, units in groups.items()
    ]


def _split(chosen: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Part a filter into the arm and the coordinates."""
    return chosen.get(ARM, FEDERATED), {key: value for key, value in chosen.items() if key != ARM}


def _rest(cell: Cell, apart: set[str]) -> tuple[Any, ...]:
    return tuple(value for key, value in cell.coordinates.items() if key not in apart)


def _means(units: Mapping[Unit, Sequence[Floats]]) -> dict[Unit, Floats]:
    return {unit: np.mean(np.stack(list(drawn)), axis=0) for unit, drawn in units.items()}


def _outcome(contrast: Contrast, at: Mapping[str, Any], units: Mapping[Unit, Floats], left: int) -> Outcome:
    gaps = np.array([drawn[0] for drawn in units.values()])
    gains = -gaps if contrast.metric in LOWER_IS_BETTER else gaps
    wins, losses = int((gains >= TIE).sum()), int((gains <= -TIE).sum())
    ties = len(gains) - wins - losses
    return Outcome(contrast, at, estimate(units), wins, losses, ties, left)


def estimate(units: Mapping[Unit, Floats], generator: np.random.Generator | None = None) -> Estimate | None:
    """Average ``[1 + R]`` draws over seeds and sites; seeds and sites are drawn again in each replicate.

    A pair of seed and site that is absent (a failed cell, a site that fell out) is left out of each
    mean; a replicate without any is left out of the interval. None without any pair.
    """
    if not units:
        return None
    generator = generator or numpy_generator(0, "benchmark", "seeds and sites")
    seeds, sites = sorted({seed for seed, _ in units}), sorted({site for _, site in units})
    drawn = np.full((len(seeds), len(sites), len(next(iter(units.values())))), np.nan)
    for (seed, site), values in units.items():
        drawn[seeds.index(seed), sites.index(site)] = values
    replicates = drawn.shape[2] - 1
    even = [np.full(len(of), 1.0 / len(of)) for of in (seeds, sites)]
    u, v = (generator.multinomial(len(p), p, size=replicates).astype(np.float64) for p in even)
    weights = np.einsum("rs,rj->sjr", u, v)  # [S, J, R]
    known = ~np.isnan(drawn[:, :, 1:])
    total = (weights * known).sum(axis=(0, 1))
    sums = (weights * np.where(known, drawn[:, :, 1:], 0.0)).sum(axis=(0, 1))
    means = np.divide(sums, total, out=np.full(replicates, np.nan), where=total > 0)
    told = means[~np.isnan(means)]
    interval = percentile_interval(told) if told.size and np.ptp(told) > 0 else None
    return Estimate(float(np.nanmean(drawn[:, :, 0])), interval, len(seeds), len(sites))


def answer(grid: Grid, figures: Figures) -> list[Outcome]:
    """Answer every contrast of a grid."""
    return [row for contrast in grid.contrasts for row in outcomes(contrast, figures)]
