"""Ledgers to read: one that was made up, one of a real short run, and ones told event by event."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from server.facts.runs import Run, Runs
from server.facts.view import LedgerView
from server.ledger import Ledger
from server.plan import write_plan
from simulations.benchmarks.large_ledger import write_large_ledger
from simulations.engine import run_inline
from simulations.experiment import Experiment
from simulations.faults import tamper_with
from simulations.prepare import prepare_sites

FINDINGS = ("cardiomegaly", "effusion", "edema")
TINY: dict[str, Any] = {
    "title": "tiny",
    "threads": 1,
    "arms": ["local", "federated"],
    "data": {"findings": list(FINDINGS), "image_size": 32},
    "model": {"backbone": "timm:test_vit"},
    "pet": {"rank": 2},
    "train": {"lr": 0.01, "batch_size": 16},
    "rounds": {"count": 3, "deadline": 60.0, "quorum": 2},
    "evaluate": {"replicates": 20, "local": True},
    "faults": [{"site": "east", "kind": "large", "rounds": [2]}],
    "sites": {
        "north": {"phantom": {"studies": 60, "seed": 1, "size": 32}},
        "east": {"phantom": {"studies": 50, "seed": 2, "size": 32, "scanner": "portable"}},
        "south": {"phantom": {"studies": 40, "seed": 3, "size": 32, "findings": ["edema", "effusion"]}},
    },
}


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 6 sites, 12 rounds and 4 findings that never took place."""
    folder = tmp_path_factory.mktemp("made") / "up"
    write_large_ledger(folder, rounds=12, sites=6, findings=4, seed=1)
    return folder


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three sites and three rounds; east's second update is rejected."""
    folder = tmp_path_factory.mktemp("real")
    experiment = Experiment.build(TINY)
    files = prepare_sites(experiment, folder / "sites")
    run_inline(experiment.run_config(len(files)), files, folder / "run", tamper_with(experiment.faults))
    return folder / "run"


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a run's folder, so that it can be written to."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def view(made_up: Path) -> Iterator[LedgerView]:
    """The ledger that was made up."""
    with LedgerView(made_up / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def run(made_up: Path) -> Iterator[Run]:
    """The run that was made up."""
    runs = Runs.of_folder(made_up)
    yield runs.list()[0]
    runs.close()


class Told:
    """A run in a folder of its own that is told event by event, by a clock that the test sets."""

    def __init__(self, folder: Path, **rounds: Any) -> None:
        self.now = 1000.0
        config = RunConfig.build({"data": {"findings": FINDINGS}, "rounds": {"deadline": 60.0, **rounds}})
        write_plan(config, "b" * 64, folder, "c" * 64)
        self.ledger = Ledger(folder / "ledger.sqlite", clock=lambda: self.now)
        self.run = Run("told", folder)

    def tell(self, kind: str, text: str = "", *, after: float = 1.0, **facts: Any) -> None:
        """Let time pass, then tell of an event."""
        self.now += after
        self.ledger.event(kind, text or kind, **facts)

    def finish_round(self, number: int, returned: list[str], **more: Any) -> None:
        """Commit a round."""
        record = {
            "round": number, "cohort": returned, "returned": returned, "missing": [], "rejected": {},
            "up": 10 * len(returned), "down": 20 * len(returned), "seconds": 1.0, "lora_error": None,
            "status": "committed", "examples": dict.fromkeys(returned, 1), "validation_before": {},
        }  # fmt: skip
        self.ledger.put_round({**record, **more})
        self.tell("round", f"Round {number}", round=number)

    def close(self) -> None:
        """Close the ledger at both ends."""
        self.run.close()
        self.ledger.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    """A run of four rounds that nothing has happened in yet."""
    made = Told(tmp_path / "told", count=4)
    yield made
    made.close()
