"""A benchmark, summed up: one line for each point of the grid, and the answers to its questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from common.files import READABLE, write_atomic
from common.protocol import SAME_RANKING
from simulations.benchmark.cells import Cell, label
from simulations.benchmark.contrasts import FEDERATED, Estimate, Figures, Outcome, answer, outcomes
from simulations.benchmark.grid import ARM, METRIC_WORDS, SEED, VARIANT, Contrast, Grid, Metric, Published
from simulations.benchmark.results import METRICS, Failure, Found, Result
from simulations.benchmark.tuning import Choice, choose
from simulations.benchmark.words import sentence

ARMS = ("local", FEDERATED, "pooled", "personalised", "held-out", "calibrated")
"""What comes first; other arms follow in the order of their names."""
_CALIBRATIONS = ("temperature", "calibrated", "calibrated-here")


@dataclass(frozen=True)
class Line:
    """One point of the grid over its seeds."""

    label: str
    coordinates: Mapping[str, Any]
    """Without the seed."""
    scores: Mapping[str, Mapping[str, Estimate | None]]
    """Arm -> metric -> mean over seeds and sites."""
    worst: tuple[str, float] | None
    """Site at which the federated model is worst in the grid's metric, and the mean over seeds there."""
    trained_parameters: int
    payload: int
    bytes_up: int
    seconds: float
    """Of these the mean over the seeds."""
    seeds: int
    """Finished."""
    failed: int
    sites: tuple[str, ...]
    """Where it was measured: a site may have too few studies for what a cell asks."""


@dataclass(frozen=True)
class Summary:
    """All that the page and the terminal tell."""

    title: str
    grid: Grid
    lines: tuple[Line, ...]
    outcomes: tuple[Outcome, ...]
    against_reference: tuple[Outcome, ...]
    """Each other variant minus the reference, where the grid names one."""
    choices: tuple[Choice, ...]
    failures: tuple[tuple[str, Failure], ...]
    """Cell in words and what went wrong."""
    incidents: tuple[tuple[str, str], ...]
    """Cell in words and what its run went on without."""
    published: tuple[tuple[Published, Estimate | None], ...]
    """A figure of theirs, and the one of ours that comes closest."""
    cells: int
    finished: int
    sites: tuple[str, ...] = field(default=())

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that was measured."""
        named = {arm for line in self.lines for arm in line.scores}
        return (*(arm for arm in ARMS if arm in named), *sorted(named - set(ARMS)))

    @property
    def trained_otherwise(self) -> tuple[str, ...]:
        """Arms that the grid's metric can tell apart: scaled probabilities rank studies as before."""
        same = SAME_RANKING if self.grid.metric in ("auroc", "pr_auc") else frozenset()
        return tuple(arm for arm in self.arms if arm not in same)

    @property
    def at_fewer_sites(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Lines in words, and the sites of others they were not measured at: their means do not compare."""
        everywhere = {site for line in self.lines for site in line.sites}
        missing = [
            (line.label, tuple(sorted(everywhere - {*line.sites}))) for line in self.lines if line.seeds
        ]
        return tuple((name, sites) for name, sites in missing if sites)


def summarise(title: str, grid: Grid, found: Found, place: Callable[[Cell], Path]) -> Summary:
    """Sum up a grid whose cells were run; ``place`` tells where a cell lies."""
    kept, choices = choose(found)
    figures = Figures(kept, place, grid.replicates)
    by_label: dict[str, list[tuple[Cell, Result | Failure]]] = {}
    for cell, result in kept:
        by_label.setdefault(label(cell.coordinates), []).append((cell, result))
    named = [(f"{cell.label}, seed {cell.coordinates[SEED]}", result) for cell, result in found]
    results = [result for _, result in kept if isinstance(result, Result)]
    return Summary(
        title=title,
        grid=grid,
        lines=tuple(_line(name, cells, figures, grid) for name, cells in by_label.items()),
        outcomes=tuple(answer(grid, figures)),
        against_reference=tuple(_against_reference(grid, figures)),
        choices=tuple(choices),
        failures=tuple((name, result) for name, result in named if isinstance(result, Failure)),
        incidents=tuple(
            (name, text) for name, result in named if isinstance(result, Result) for text in result.incidents
        ),
        published=tuple(
            (theirs, figures.mean(theirs.ours, theirs.metric) if theirs.ours else None)
            for theirs in grid.published
        ),
        cells=len(found),
        finished=sum(isinstance(result, Result) for _, result in found),
        sites=tuple(sorted({row.site for result in results for row in result.rows})),
    )


def _line(name: str, cells: Found, figures: Figures, grid: Grid) -> Line:
    coordinates = {key: value for key, value in cells[0][0].coordinates.items() if key != SEED}
    results = [result for _, result in cells if isinstance(result, Result)]
    arms = {row.arm for result in results for row in result.rows}
    by_site = figures.by_site(coordinates, grid.metric)
    worst = min(by_site, key=lambda site: by_site[site], default=None)
    facts = [result.facts for result in results]
    return Line(
        label=name,
        coordinates=coordinates,
        scores={
            arm: {metric: figures.mean({**coordinates, ARM: arm}, metric) for metric in _metrics()}
            for arm in sorted(arms)
        },
        worst=None if worst is None else (worst, by_site[worst]),
        trained_parameters=max((f.trained_parameters for f in facts), default=0),
        payload=round(fmean(f.payload for f in facts)) if facts else 0,
        bytes_up=round(fmean(f.bytes_up for f in facts)) if facts else 0,
        seconds=fmean(f.seconds for f in facts) if facts else 0.0,
        seeds=len(results),
        failed=len(cells) - len(results),
        sites=tuple(sorted(by_site)),
    )


def _metrics() -> tuple[Metric, ...]:
    return METRICS  # type: ignore[return-value]


def _against_reference(grid: Grid, figures: Figures) -> list[Outcome]:
    if not grid.reference:
        return []
    rows: list[Outcome] = []
    for name in grid.variants:
        if name not in (grid.reference, *grid.cautions):
            first, second = {VARIANT: name}, {VARIANT: grid.reference}
            contrast = Contrast(
                name=name, first=first, second=second, metric=grid.metric, by=tuple(grid.axes)
            )
            rows += outcomes(contrast, figures)
    return rows


def calibrations(line: Line) -> tuple[str, ...]:
    """Return the arms of a line that are the federated model with its probabilities scaled."""
    return tuple(arm for arm in _CALIBRATIONS if arm in line.scores)


def write_summary(summary: Summary, folder: Path) -> None:
    """Write ``summary.json``: the lines and the answers, for programs."""
    content = {
        "title": summary.title,
        "question": summary.grid.question,
        "cells": summary.cells,
        "finished": summary.finished,
        "contrasts": [
            {
                "name": row.contrast.name,
                "metric": row.contrast.metric,
                "at": dict(row.at),
                "difference": None if row.difference is None else asdict(row.difference),
                "wins": row.wins,
                "losses": row.losses,
                "ties": row.ties,
                "left_out": row.left_out,
                "verdict": row.verdict,
                "sentence": sentence(row),
            }
            for row in (*summary.outcomes, *summary.against_reference)
        ],
        "lines": [asdict(line) for line in summary.lines],
        "tuned": [asdict(choice) for choice in summary.choices],
        "failures": [{"cell": name, **failure.model_dump()} for name, failure in summary.failures],
        "metrics": dict(METRIC_WORDS),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(folder / "summary.json", text.encode(), READABLE)
