"""Three tiny sites and a tiny backbone: a whole federation in about a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.adapter import AdapterState
from common.overrides import merge
from server.report_schema import Report
from simulations.engine import Engine
from simulations.experiment import Experiment
from simulations.prepare import prepare_sites
from simulations.run import run_experiment
from simulations.view import View

TINY: dict[str, Any] = {
    "title": "tiny",
    "threads": 1,
    "arms": ["federated"],
    "data": {"findings": ["cardiomegaly", "effusion", "edema"], "image_size": 32},
    "model": {"backbone": "timm:test_vit"},
    "pet": {"rank": 2, "bottleneck": 4},
    "train": {"lr": 0.01, "batch_size": 16},
    "rounds": {"count": 2, "deadline": 60.0},
    "evaluate": {"replicates": 20, "local": False},
    "sites": {
        "north": {"phantom": {"studies": 60, "seed": 1, "size": 32}},
        "east": {"phantom": {"studies": 50, "seed": 2, "size": 32, "scanner": "portable"}},
        "south": {"phantom": {"studies": 40, "seed": 3, "size": 32, "findings": ["edema", "effusion"]}},
    },
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three sites' folders, drawn and decoded once; only copies are run on: a run leaves its state."""
    folder = tmp_path_factory.mktemp("tiny") / "sites"
    return prepare_sites(Experiment.build(TINY), folder)


def copy_sites(prepared: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Copy prepared sites; returns site -> site.toml."""
    shutil.copytree(next(iter(prepared.values())).parents[1], folder)
    return {name: folder / name / "site.toml" for name in prepared}


@pytest.fixture(scope="module")
def tiny_sites(prepared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three sites' folders of this module."""
    return copy_sites(prepared, tmp_path_factory.mktemp("copied") / "sites")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Experiment]:
    """Build a variant of the tiny experiment from overrides."""

    def build(**overrides: Any) -> Experiment:
        return Experiment.build(merge(TINY, overrides))

    return build


@pytest.fixture(scope="session")
def run_tiny(tiny: Callable[..., Experiment], prepared: dict[str, Path]) -> Callable[..., Report]:
    """Run a variant in a folder that starts with the prepared sites."""

    def run(folder: Path, engine: Engine = "inline", resume: bool = False, **overrides: Any) -> Report:
        if not folder.exists():
            copy_sites(prepared, folder / "sites")
        return run_experiment(tiny(**overrides), folder, engine=engine, resume=resume, view=View("quiet"))

    return run


def final_adapter(folder: Path) -> AdapterState:
    """Return the last committed round's adapter."""
    last = max((folder / "checkpoints").glob("round-*"))
    return AdapterState.from_bytes((last / "adapter.safetensors").read_bytes())


@pytest.fixture(name="final_adapter")
def _final_adapter() -> Callable[[Path], AdapterState]:
    """How to read a run's last committed adapter."""
    return final_adapter
