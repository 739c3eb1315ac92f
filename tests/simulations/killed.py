"""A run in a process of its own that is killed in the middle of a round."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from simulations.experiment import Experiment

MAIN = """
import sys
from pathlib import Path
from simulations.experiment import Experiment
from simulations.run import run_experiment
from simulations.view import View
experiment = Experiment.model_validate_json(Path(sys.argv[1]).read_text(), strict=False)
run_experiment(experiment, Path(sys.argv[2]), engine="inline", resume=False, view=View("quiet"))
"""


def kill_run(experiment: Experiment, sites: Path, folder: Path, query: str, round_: int) -> list[str]:
    """Run in ``folder`` with a copy of the sites until ``query`` about a round counts something.

    Returns the names of the checkpoints that the killed run left.
    """
    shutil.copytree(sites, folder / "sites")
    file = folder.with_suffix(".json")
    file.write_text(experiment.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", MAIN, str(file), str(folder)], env=environment)
    try:
        _wait_until_counted(folder / "ledger.sqlite", query, round_, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    return sorted(path.name for path in (folder / "checkpoints").glob("round-*"))


def _wait_until_counted(ledger: Path, query: str, round_: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 100
    while time.monotonic() < end:
        assert process.poll() is None, "the run ended before it could be killed"
        if ledger.is_file():
            try:
                with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as db:
                    if db.execute(query, (round_,)).fetchone()[0]:
                        return
            except sqlite3.OperationalError:
                pass
        time.sleep(0.002)
    raise AssertionError("the event never came")
