"""Which of several settings stands for a variant: the one with the best validation, never the best test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from simulations.benchmark.cells import Cell, label
from simulations.benchmark.grid import SEED
from simulations.benchmark.results import Failure, Found, Result


@dataclass(frozen=True)
class Choice:
    """What was tried for one variant at one place of the grid, and what was taken."""

    label: str
    tried: Mapping[str, float | None]
    """Settings in words -> mean validation AUROC over the seeds; None where no cell finished."""
    taken: str


def choose(found: Found) -> tuple[Found, list[Choice]]:
    """Keep, of the cells that differ only in what is tuned, those with the best mean validation.

    Of settings that finished with fewer seeds than another, none is taken; the first of equals is.
    """
    places: dict[str, dict[str, list[tuple[Cell, Result | Failure]]]] = {}
    for cell, result in found:
        where = label({key: value for key, value in cell.coordinates.items() if key != SEED})
        places.setdefault(where, {}).setdefault(label({}, cell.tuned), []).append((cell, result))
    kept: list[tuple[Cell, Result | Failure]] = []
    choices = []
    for where, settings in places.items():
        scores = {setting: _scores(cells) for setting, cells in settings.items()}
        best = max(settings, key=lambda setting: _standing(scores[setting]))
        kept += settings[best]
        if len(settings) > 1:
            means = {setting: fmean(values) if values else None for setting, values in scores.items()}
            choices.append(Choice(where, means, best))
    return kept, choices


def _scores(cells: Found) -> list[float]:
    results = [result for _, result in cells if isinstance(result, Result)]
    return [r.facts.validation for r in results if r.facts.validation is not None]


def _standing(scores: list[float]) -> tuple[int, float]:
    return len(scores), fmean(scores) if scores else 0.0
