"""Grids that really run: each cell once, whatever ends it; failures shown; the same table after a kill."""

from __future__ import annotations

import csv
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from common.errors import ConfigError
from common.metrics.discrimination import auroc
from simulations.benchmark.cells import Cell, expand
from simulations.benchmark.contrasts import Figures
from simulations.benchmark.grid import load_grid
from simulations.benchmark.results import MACRO, Failure, Found, Result, read_result, tidy
from simulations.benchmark.run_cell import CELLS, SITES, place_of_cell
from simulations.benchmark.runner import run_grid, unfinished
from simulations.benchmark.scores import read_scores
from simulations.cli import app

GridFile = Callable[..., Path]
BROKEN = {"broken": {"pet": {"method": "lora", "targets": ["nothing"]}}}


def run(file: Path, folder: Path, *assignments: str) -> tuple[Found, list[str]]:
    """Run a grid in this process; returns what was found and which cells ran."""
    ran: list[str] = []

    def done(cell: Cell, result: Result | Failure) -> None:
        ran.append(cell.label)

    return run_grid(expand(*load_grid(str(file), assignments)), folder, 1, done), ran


def touched(folder: Path) -> dict[str, int]:
    """Every file of the finished cells -> when it was written."""
    done = [result.parent for result in (folder / CELLS).glob("*/result.json")]
    return {str(f): f.stat().st_mtime_ns for place in done for f in place.rglob("*") if f.is_file()}


def without_time(found: Found) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in tidy(found)]


def test_a_cell_is_run_once_and_a_failure_stops_no_other(grid_file: GridFile, tmp_path: Path) -> None:
    file = grid_file(benchmark={"variants": BROKEN, "seeds": [0]})
    folder = tmp_path / "out"
    found, ran = run(file, folder)
    assert ran == ["lora", "head", "broken"]
    lora, head, broken = (result for _, result in found)
    assert isinstance(lora, Result) and isinstance(head, Result)
    assert isinstance(broken, Failure) and broken.code == "E_TARGET"
    before = touched(folder)
    again, ran = run(file, folder)
    assert ran == ["broken"]  # what failed is tried again
    assert touched(folder) == before
    assert tidy(again) == tidy(found)
    assert len(list((folder / SITES).iterdir())) == 1
    assert not list((folder / CELLS).glob("*/checkpoints"))
    assert not list((folder / SITES).glob("*/*/state/*.safetensors"))


def test_the_rows_are_those_of_the_runs_own_report_and_scores(grid_file: GridFile, tmp_path: Path) -> None:
    found, _ = run(grid_file(benchmark={"seeds": [0]}), tmp_path / "out")
    cell, result = found[0]
    assert isinstance(result, Result)
    place = place_of_cell(cell, tmp_path / "out")
    scores = read_scores(place)
    assert set(scores) == {(arm, site) for arm in ("local", "federated") for site in ("north", "south")}
    for (arm, site), told in scores.items():
        assert len(told.patients) == len(told.labels) > 5
        rows = {r.finding: r for r in result.rows if (r.arm, r.site) == (arm, site)}
        areas = [auroc(told.probabilities[:, j], told.labels[:, j]) for j in range(2)]
        for finding, area in zip(("cardiomegaly", "effusion"), areas, strict=True):
            assert rows[finding].auroc == (None if area is None else pytest.approx(area, abs=5e-4))
        known = [area for area in areas if area is not None]
        assert rows[MACRO].auroc == pytest.approx(np.mean(known), abs=5e-4)
        drawn = Figures(found, lambda _: place, 20).samples(cell, result, arm, "auroc")[site]
        assert drawn[0] == pytest.approx(np.mean(known)) and len(drawn) == 21
    assert result.facts.trained_parameters > 0 and result.facts.bytes_up > 0
    assert (place / "report.html").is_file() and (place / "release").is_dir()


def test_a_torn_result_is_not_a_result(grid_file: GridFile, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"digest": "x"')
    assert read_result(tmp_path) is None


def test_two_at_once_in_one_folder_are_refused(grid_file: GridFile, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            run(grid_file(), tmp_path)


def test_a_dry_run_lists_the_cells_and_runs_nothing(grid_file: GridFile, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["benchmark", str(grid_file()), "--out", str(out), "--dry-run"])
    assert told.exit_code == 0
    assert told.output.count("to run") == 4 and "4 cells" in told.output and "lora, seed 1" in told.output
    assert not out.exists()


def test_the_command_ends_in_a_sentence_for_each_contrast(grid_file: GridFile, tmp_path: Path) -> None:
    out, file = tmp_path / "out", grid_file(benchmark={"seeds": [0]})
    told = CliRunner().invoke(app, ["benchmark", str(file), "--out", str(out), "--jobs", "1"])
    assert told.exit_code == 0, told.output
    assert "LoRA against head: AUROC" in told.output and "Against head, 1 comparison:" in told.output
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        ".lock", "benchmark.html", "summary.json", "table.csv", "table.json",
    }  # fmt: skip


def test_a_grid_of_which_no_cell_finished_is_an_error(grid_file: GridFile, tmp_path: Path) -> None:
    arguments = ["benchmark", str(grid_file()), "--out", str(tmp_path / "out"), "--jobs", "1"]
    told = CliRunner().invoke(app, [*arguments, "--set", "model.backbone=timm:no_such_net"])
    assert told.exit_code == 6 and "no cell could be finished" in told.output
    assert "E_MODEL" in told.output


def _command(file: Path, out: Path, jobs: int) -> subprocess.Popen[str]:
    arguments = ["benchmark", str(file), "--out", str(out), "--jobs", str(jobs)]
    return subprocess.Popen(
        [sys.executable, "-m", "simulations.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109
    )


def _finished(out: Path) -> int:
    return len(list((out / CELLS).glob("*/result.json")))


def _wait(until: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert process.poll() is None, "the grid ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _slots(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    for child in psutil.Process(process.pid).children():
        if "--multiprocessing-fork" in child.cmdline():
            yield child


def _stopped_in_a_cell(process: subprocess.Popen[str], out: Path) -> bool:
    """Kill one of two processes that run cells, if neither is between two cells."""
    slots = list(_slots(process))
    if len(slots) != 2:
        return False
    slots[0].suspend()
    begun = [place for place in (out / CELLS).iterdir() if (place / "ledger.sqlite").is_file()]
    if sum(not (place / "result.json").is_file() for place in begun) < 2:
        slots[0].resume()
        return False
    slots[0].kill()
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_the_middle_a_grid_repeats_nothing_and_ends_in_the_same_table(
    grid_file: GridFile, tmp_path: Path
) -> None:
    file = grid_file(rounds={"count": 3}, benchmark={"seeds": [0, 1, 2]})
    whole, _ = run(file, tmp_path / "whole")
    out = tmp_path / "out"
    cells = [cell for cell, _ in whole]

    # One of two processes dies: its cell has failed, the others go on.
    process = _command(file, out, 2)
    _wait(lambda: _finished(out) >= 1 and _stopped_in_a_cell(process, out), process)
    said, _ = process.communicate(timeout=300)
    assert "E_WORKER" in said and _finished(out) == len(cells) - 1, said

    # The command itself is killed: nothing of it stays, and what is finished is not run again.
    for place in list((out / CELLS).iterdir())[:4]:
        (place / "result.json").unlink(missing_ok=True)  # four cells to do again, from their checkpoints' end
    before = touched(out)
    process = _command(file, out, 2)
    _wait(lambda: len(list(_slots(process))) == 2 and len(unfinished(cells, out)) < 4, process)
    children = list(_slots(process))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    psutil.wait_procs(children, timeout=30)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    kept = touched(out)
    assert before.items() <= kept.items()

    again, ran = run(file, out)
    assert 0 < len(ran) < 4
    assert kept.items() <= touched(out).items()
    assert without_time(again) == without_time(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cells_side_by_side_find_what_cells_in_a_row_find(grid_file: GridFile, tmp_path: Path) -> None:
    file = grid_file(benchmark={"variants": BROKEN})
    row, _ = run(file, tmp_path / "row")
    process = _command(file, tmp_path / "out", 2)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "failed: broken" in said
    beside, ran = run(file, tmp_path / "out")
    assert set(ran) == {"broken"}
    assert without_time(beside) == without_time(row)
    with (tmp_path / "out" / "table.csv").open() as table:
        assert len(list(csv.DictReader(table))) == len(tidy(row))
