"""Run one cell in this process: its federation, its report, its result."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterable
from pathlib import Path

from client.site import load_site
from common.errors import FedcxrError
from common.files import write_atomic
from simulations.benchmark.cells import Cell
from simulations.benchmark.results import (
    FAILURE,
    RESULT,
    Failure,
    Result,
    read_result,
    result_of,
    write_part,
)
from simulations.benchmark.scores import Listener
from simulations.benchmark.shared_sites import shared_sites
from simulations.run import run_experiment
from simulations.view import View

CELLS, SITES = "cells", "sites"
"""Folders of a benchmark: one run each, and the sites they share."""


def place_of_cell(cell: Cell, folder: Path) -> Path:
    """Return the run folder of a cell within the benchmark's."""
    return folder / CELLS / cell.digest[:12]


def run_cell(cell: Cell, folder: Path) -> Result | Failure:
    """Run a cell of the benchmark in ``folder``, or go on where it was left; a finished one is only read.

    What goes wrong becomes a `Failure`, written beside the run; it is tried again the next time.
    """
    place = place_of_cell(cell, folder)
    if (known := read_result(place)) is not None:
        return known
    place.mkdir(parents=True, exist_ok=True)
    (place / FAILURE).unlink(missing_ok=True)
    try:
        return _run(cell, folder, place)
    except FedcxrError as error:
        failure = _failure(cell, error.code, error.problem, error.fix)
    except Exception as error:  # noqa: BLE001  (one cell's fault must not end the grid)
        write_atomic(place / "fault.log", traceback.format_exc().encode())
        words = f"a fault of ours: {type(error).__name__}; details in {place.name}/fault.log"
        failure = _failure(cell, FedcxrError.code, words, "report it with the grid")
    write_part(failure, place / FAILURE)
    return failure


def _failure(cell: Cell, code: str, problem: str, fix: str) -> Failure:
    return Failure(digest=cell.digest, title=cell.experiment.title, code=code, problem=problem, fix=fix)


def _run(cell: Cell, folder: Path, place: Path) -> Result:
    files = shared_sites(cell.experiment, folder / SITES)
    listener, resume = Listener(), (place / "plan.toml").is_file()
    with listener.at(files):
        report = run_experiment(
            cell.experiment, place, engine="inline", resume=resume, view=View("quiet"), sites=files
        )
    listener.write(report.plan_digest, place)
    result = result_of(report, cell.digest)
    write_part(result, place / RESULT)
    _tidy_up(place, files.values(), report.plan_digest)
    return result


def _tidy_up(place: Path, sites: Iterable[Path], plan_digest: str) -> None:
    """Remove what only going on would need: checkpoints, and what the sites kept for this plan.

    A grid of full fine-tuning would fill the disk with it. The report, the ledger and the release stay.
    """
    for gone in (place / "pooled", *place.rglob("checkpoints")):
        shutil.rmtree(gone, ignore_errors=True)
    for file in sites:
        for kept in load_site(file).data.state.glob(f"*{plan_digest[:16]}*"):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink(missing_ok=True)
