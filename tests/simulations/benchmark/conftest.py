"""A grid of tiny federations, and one that was run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.overrides import merge
from simulations.benchmark.cells import Cell
from simulations.benchmark.grid import Grid
from simulations.benchmark.results import MACRO, Facts, Failure, Found, Result, Row
from simulations.experiment import Experiment

SITE = {"studies": 40, "size": 32}
TREE: dict[str, Any] = {
    "title": "tiny grid",
    "threads": 1,
    "arms": ["local", "federated"],
    "data": {"findings": ["cardiomegaly", "effusion"], "image_size": 32},
    "model": {"backbone": "timm:test_vit"},
    "pet": {"rank": 2},
    "train": {"lr": 0.01, "batch_size": 16},
    "rounds": {"count": 1, "deadline": 60.0},
    "evaluate": {"replicates": 20, "pooled": False},
    "sites": {
        "north": {"phantom": {**SITE, "seed": 1, "split": [0.5, 0.1, 0.4]}},
        "south": {"phantom": {**SITE, "seed": 2, "split": [0.5, 0.1, 0.4]}},
    },
    "benchmark": {
        "question": "Which is better?",
        "seeds": [0, 1],
        "variants": {"lora": {"pet": {"method": "lora"}}, "head": {"pet": {"method": "head"}}},
        "reference": "head",
        "contrasts": [
            {"name": "LoRA against head", "first": {"variant": "lora"}, "second": {"variant": "head"}}
        ],
        "replicates": 50,
    },
}


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny grid with overrides; returns the file."""

    def write(**overrides: Any) -> Path:
        file = tmp_path / "grid.toml"
        file.write_text(tomli_w.dumps(merge(TREE, overrides)))
        return file

    return write


def invented(
    values: dict[tuple[str, int, str], float | None], extra: Sequence[tuple[str, int]] = ()
) -> Found:
    """Make finished cells of (variant, seed, site) -> AUROC; ``extra`` are (variant, seed) that failed."""
    experiment = Experiment.build({key: value for key, value in TREE.items() if key != "benchmark"})
    found: list[tuple[Cell, Result | Failure]] = []
    points = dict.fromkeys([*((variant, seed) for variant, seed, _ in values), *extra])
    for variant, seed in points:
        name = f"{variant}-{seed}"
        cell = Cell({"variant": variant, "seed": seed}, {}, experiment, name)
        if (variant, seed) in extra:
            found.append((cell, Failure(digest=name, title=name, code="E_TARGET", problem="no such layer")))
            continue
        rows = tuple(
            Row(arm="federated", site=site, finding=MACRO, auroc=value, ece=value, pooled_ece=value)
            for (v, s, site), value in values.items()
            if (v, s) == (variant, seed)
        )
        facts = Facts(
            trained_parameters=10 if variant == "lora" else 100,
            parameters=1000,
            bytes_up=1000 if variant == "lora" else 9000,
            bytes_down=10,
            payload=5,
            rounds=1,
            seconds=1.0,
            validation=0.5,
            adapter_sha256=None,
        )
        found.append(
            (cell, Result(digest=name, title=name, plan_digest="p", facts=facts, incidents=(), rows=rows))
        )
    return found


@pytest.fixture(name="invented")
def _invented() -> Callable[..., Found]:
    return invented


@pytest.fixture
def grid() -> Grid:
    """The tiny grid's description."""
    return Grid.model_validate(TREE["benchmark"])
