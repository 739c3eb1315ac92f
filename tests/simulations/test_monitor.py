"""``fedcxr-simulate run --monitor``: the page beside a run, from its beginning to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import tomli_w

import simulations
from simulations.phantom.site import write_site
from simulations.view import View
from simulations.watching import Watching


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of a second over two small sites."""
    folder = tmp_path_factory.mktemp("monitored")
    site = {}
    for seed, name in enumerate(("north", "south")):
        write_site(folder / name, name=name, n=40, seed=seed, size=32, scanner="reference")
        data = {"table": f"{name}/studies.csv", "root": name}
        site[name] = {"site": {"data": data, "labels": {"edema": "edema", "effusion": "effusion"}}}
    tree = {
        "data": {"findings": ["edema", "effusion"], "image_size": 32, "root": str(folder)},
        "model": {"backbone": "timm:test_vit"}, "pet": {"method": "head"}, "rounds": {"count": 2},
        "evaluate": {"replicates": 20}, "threads": 1, "arms": ["federated"], "sites": site,
    }  # fmt: skip
    (folder / "tiny.toml").write_text(tomli_w.dumps(tree))
    return folder / "tiny.toml"


def start(experiment: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "simulations.cli", "run", str(experiment), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(simulations.__file__).parents[1])}
    return subprocess.Popen(
        [*command, "--monitor", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            yield line.rstrip()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_quiet_says_the_address_first_and_how_to_come_back_last(experiment: Path, tmp_path: Path) -> None:
    process = start(experiment, tmp_path / "runs" / "mine", "--quiet")
    lines = lines_of(process)
    first = next(lines)
    assert first.startswith("Monitor: http://127.0.0.1:") and first.endswith("/runs/mine")
    address = first.removeprefix("Monitor: ")
    assert httpx.get(address, timeout=20).status_code == 200, "there from the first line on"
    monitor = psutil.Process(process.pid).children(recursive=True)
    assert [child for child in monitor if "server.cli" in child.cmdline()]
    said = list(lines)
    assert process.wait(timeout=60) == 0
    assert said[-1].endswith(f"fedcxr-server monitor {tmp_path / 'runs' / 'mine'}")
    assert any(line.startswith("Report: ") for line in said) and len(said) == 2
    with pytest.raises(httpx.TransportError):
        httpx.get(address)


@pytest.mark.timeout(120)
def test_json_says_it_as_an_event_and_a_killed_run_leaves_no_monitor(
    experiment: Path, tmp_path: Path
) -> None:
    process = start(experiment, tmp_path / "runs" / "mine", "--json")
    events = (json.loads(line) for line in lines_of(process) if line.startswith("{"))
    told = next(event for event in events if event["kind"] == "monitor")
    assert told["address"].endswith("/runs/mine")
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    events.close()
    end = time.monotonic() + 10
    while [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_without_a_monitor_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    watching = Watching(tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "mine").mkdir()
    View("quiet", watching).begin(tmp_path / "runs" / "mine")
    watching.close()
    assert "does not start, the run goes on without it" in capsys.readouterr().out


def test_a_run_of_a_name_no_address_can_have(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "my run & more"
    folder.mkdir(parents=True)
    watching = Watching(folder)
    try:
        page = watching.page_of(folder)
        assert page.endswith("/runs/my-run-more")
        assert httpx.get(page, timeout=20).status_code == 200
    finally:
        watching.close()
