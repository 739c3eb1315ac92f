"""The cells of a grid: each is one experiment with one seed, named by a digest of what it is."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.code import code_digest
from common.errors import ConfigError
from common.overrides import set_key
from simulations.benchmark.grid import SEED, VARIANT, Grid
from simulations.experiment import Experiment

_ASIDE = {"title", "description", "benchmark"}
"""What a cell is called does not make it another one."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    coordinates: Mapping[str, Any]
    """Variant, axes and seed."""
    tuned: Mapping[str, Any]
    """What ``tune`` sets in it, of which validation chooses; empty where nothing is tuned."""
    experiment: Experiment
    digest: str

    @property
    def label(self) -> str:
        """What the cell is, in words, without the seed."""
        return label(self.coordinates, self.tuned)


def label(coordinates: Mapping[str, Any], tuned: Mapping[str, Any] | None = None) -> str:
    """Write coordinates as people read them.

    >>> label({"variant": "lora", "data.fraction": 0.1, "seed": 3})
    'lora, data.fraction 0.1'
    """
    parts = [] if VARIANT not in coordinates else [str(coordinates[VARIANT])]
    rest = {key: value for key, value in coordinates.items() if key not in (VARIANT, SEED)} | dict(
        tuned or {}
    )
    parts += [f"{key} {shown(value)}" for key, value in rest.items()]
    return ", ".join(parts) or "as it is"


def shown(value: Any) -> str:
    """Write a value of a key.

    >>> shown(0.0001), shown(("q", "v")), shown(True)
    ('0.0001', 'q v', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def matches(coordinates: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether a cell has every coordinate a filter names.

    >>> matches({"seed": 1, "data.shots": 8}, {"data.shots": [4, 8]})
    True
    """
    return all(
        coordinates.get(key) in (value if isinstance(value, list | tuple) else (value,))
        for key, value in wanted.items()
    )


def expand(grid: Grid, experiment: Experiment) -> list[Cell]:
    """Return every cell of the grid, in its order: variants, axes, what is tuned, seeds.

    Raises:
        ConfigError: if a cell's settings are wrong, naming the cell.
    """
    base = experiment.model_dump(exclude={"benchmark"})
    return [
        _cell(grid, base, coordinates, tuned)
        for coordinates, tuned in _points(grid)
        if not any(when.leave_out and matches(coordinates, when.cells) for when in grid.when)
    ]


def _points(grid: Grid) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for variant in grid.variants or (None,):
        named = {} if variant is None else {VARIANT: variant}
        tried = grid.tune.get(variant or "", {})
        for values in itertools.product(*grid.axes.values()):
            for settings in itertools.product(*tried.values()):
                for seed in grid.seeds:
                    point = named | dict(zip(grid.axes, values, strict=True)) | {SEED: seed}
                    yield point, dict(zip(tried, settings, strict=True))


def _cell(grid: Grid, base: Mapping[str, Any], coordinates: dict[str, Any], tuned: dict[str, Any]) -> Cell:
    over: dict[str, Any] = dict(grid.variants.get(coordinates.get(VARIANT, ""), {}))
    over |= {key: value for key, value in coordinates.items() if key not in (VARIANT, SEED)}
    for when in grid.when:
        if matches(coordinates, when.cells):
            over |= when.set
    over |= tuned | {"seed": coordinates[SEED]}
    tree = copy.deepcopy(dict(base))
    name = label(coordinates, tuned)
    try:
        for key, value in over.items():
            set_key(tree, key, value)
        tree["title"] = f"{base['title']}: {name}, seed {coordinates[SEED]}"
        tree["threads"] = tree["threads"] or 1  # as many cells at a time as there are cores
        varied = Experiment.build(tree)
    except ConfigError as error:
        raise ConfigError(f"cell {name!r}: {error.problem}", found=error.found, fix=error.fix) from None
    return Cell(coordinates, tuned, varied, _digest(varied))


def _digest(experiment: Experiment) -> str:
    """SHA-256 over all that decides what a cell finds: its settings and the code."""
    settings = experiment.model_dump(mode="json", exclude=_ASIDE)
    identity = {"experiment": settings, "code": code_digest()}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
