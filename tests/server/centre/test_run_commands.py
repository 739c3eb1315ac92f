"""``start``, ``run``, ``status``, ``resume`` and ``stop`` as processes, with no site connected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import RunError
from server.centre.folder import CentreFolder
from server.centre.rollback import roll_back
from server.centre.run_folder import find_run

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def started(tmp_path: Path, provision: Callable[..., CentreFolder]) -> Iterator[tuple[CentreFolder, Call]]:
    """``fedcxr-server start`` and a way to call the other commands; sites are admitted, none connects."""
    centre = provision(tmp_path / "centre", numbered=False)
    driver = tmp_path / "driver.py"
    names = ("start", "run", "resume", "rollback", "release", "stop", "status")
    driver.write_text(
        "import typer\nfrom server.centre import run_commands as r\napp = typer.Typer()\n"
        + "".join(f"app.command('{name}')(r.{name})\n" for name in names)
        + "app()\n"
    )
    environment = os.environ | {"FEDCXR_CENTRE": str(centre.root), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", str(driver), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL
        )

    output = (tmp_path / "centre.out").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-P", str(driver), "start"], env=environment, stdout=output, stderr=output
    )
    try:
        yield centre, call
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        output.seek(0)
        said = output.read()
        output.close()
    assert code == 0, said
    assert "fingerprint" in said and "2 sites admitted: east, north" in said and "Stopped." in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_status_stop_and_resume_on_a_real_superlink(started: Any, tmp_path: Path) -> None:
    centre, call = started
    plan = tmp_path / "lonely.toml"
    plan.write_text(
        '[data]\nfindings = "effusion"\nimage_size = 32\n[model]\nbackbone = "timm:test_vit"\n'
        "[rounds]\ncount = 1\ndeadline = 300.0\n"
    )
    end = time.monotonic() + 120
    while True:  # the centre takes a moment to start; until then it is said
        done = call("run", str(plan), "--yes", "--detach")
        if done.returncode == 0:
            break
        assert done.returncode == 8 and "E_UNREACHABLE" in done.stderr, done.stderr
        assert time.monotonic() < end
        assert not list(centre.runs.glob("*"))
    assert "Not connected: east, north" in done.stdout and "enrol -> local -> train" in done.stdout

    run = find_run(centre, "lonely")

    def until(there: Callable[[], object]) -> None:
        end = time.monotonic() + 120
        while not there():
            assert time.monotonic() < end, [event.text for event in run.events()]
            time.sleep(0.3)

    until(lambda: [event for event in run.events() if event.kind == "waiting"])
    told = call("status", "lonely").stdout
    assert "waiting for 2 more of 2 sites (east, north not connected)" in told
    told = call("status").stdout
    assert "is running" in told and "lonely" in told
    again = call("resume", "lonely", "--detach")
    assert again.returncode == 6 and "still goes on" in again.stderr
    with pytest.raises(RunError, match="another process"):
        roll_back(run, 0)
    assert call("run", str(plan), "--name", "lonely", "--yes").returncode == 2

    killed = [line for line in _family(centre) if "flwr-serverapp" in line]
    assert killed
    for line in killed:
        os.kill(int(line.split()[0]), signal.SIGKILL)
    resumed = call("resume", "--detach")
    assert resumed.returncode == 0 and "is resumed" in resumed.stdout, resumed.stderr
    assert len(run.flower_runs()) == 2
    until(lambda: run.at_work and run.served_by() == run.flower_runs()[1])
    stopped = call("stop")
    assert stopped.returncode == 0 and "is stopped" in stopped.stdout
    assert "was over already" in call("stop").stdout
    until(lambda: not [line for line in _family(centre) if "flwr-serverapp" in line])
    assert run.outcome() == "stopped" and not run.at_work
    second = call("start")
    assert second.returncode == 8 and "runs already" in second.stderr


def _family(centre: CentreFolder) -> list[str]:
    """``PID command`` of the processes that this centre's supervisor has started."""

    kept = json.loads((centre.logs / "processes.json").read_text()).values()
    started = [psutil.Process(facts["pid"]) for facts in kept if facts["pid"] is not None]
    below = [child for process in started for child in process.children(recursive=True)]
    alive = (child for child in below if child.status() != psutil.STATUS_ZOMBIE)
    return [f"{child.pid} {' '.join(child.cmdline())}" for child in alive]
