"""A run in a process of its own that is killed in the middle of a round."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from simulations.experiment import Experiment

MAIN = """
import os
import signal
import sys
from pathlib import Path
from server.ledger import Ledger
from simulations.experiment import Experiment
from simulations.run import run_experiment
from simulations.view import View

file, folder, query, round_ = sys.argv[1:]
written = Ledger.event

def die_once_it_is_written(ledger, *args, **kwargs):
    written(ledger, *args, **kwargs)
    place = Path(ledger._db.execute("PRAGMA database_list").fetchone()[2]).parent
    if place == Path(folder).resolve() and ledger._db.execute(query, (int(round_),)).fetchone()[0]:
        os.kill(os.getpid(), signal.SIGKILL)

Ledger.event = die_once_it_is_written
experiment = Experiment.model_validate_json(Path(file).read_text(), strict=False)
run_experiment(experiment, Path(folder), engine="inline", resume=False, view=View("quiet"))
"""


def kill_run(experiment: Experiment, sites: Path, folder: Path, query: str, round_: int) -> list[str]:
    """Run in ``folder`` with a copy of the sites; SIGKILL comes when ``query`` about a round counts an event.

    Returns the names of the checkpoints that the killed run left.
    """
    shutil.copytree(sites, folder / "sites")
    file = folder.with_suffix(".json")
    file.write_text(experiment.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MAIN, str(file), str(folder), query, str(round_)]
    done = subprocess.run(command, env=environment, timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL, "the event never came"
    return sorted(path.name for path in (folder / "checkpoints").glob("round-*"))
