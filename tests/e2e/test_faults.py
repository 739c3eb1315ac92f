"""Processes die, links go down, disks fill up: the run goes on or resumes, to the same adapter."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.timeout(1500),
]

PLAN = """
seed = 3
[data]
findings = "effusion"
image_size = 32
[model]
backbone = "timm:test_vit"
[pet]
rank = 2
[train]
batch_size = 8
steps = 60
[rounds]
count = 3
sites = 3
quorum = 3
deadline = 400.0
[evaluate]
local = false
replicates = 50
"""
SITES = ("north", "south", "east")


@pytest.fixture(scope="module")
def up(deploy: Callable[[str], Any]) -> Iterator[Any]:
    """A centre and three hospitals; the centre's folder lies on a small disk of its own."""
    d = deploy("faults")
    d.make_centre()
    plan = d.plan(PLAN)
    for seed, name in enumerate(SITES, start=1):
        d.export(name, "--studies", "60", "--seed", str(seed), "--size", "48")
        d.join(name, approve=False)
        d.approve(name, "--plan", plan)
    d.run_plan = plan
    d.up(SITES)
    return d


@pytest.fixture(scope="module")
def expected(up: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the uninterrupted run, from the researcher's engine."""
    from common.config import RunConfig
    from simulations.engine import run_inline

    folder = tmp_path_factory.mktemp("uninterrupted")
    files = {}
    for name in SITES:
        files[name] = folder / name / "site.toml"
        away = shutil.ignore_patterns("node", "cache", "state")
        shutil.copytree(up.sites[name], files[name].parent, ignore=away)
    run_inline(RunConfig.build(tomllib.loads(PLAN)), files, folder / "run")
    return (folder / "run" / "release" / "adapter_model.safetensors").read_bytes()


def begun(d: Any, name: str, round_number: int, wait_for: Callable[..., object]) -> None:
    """Wait until a round has been asked."""
    wait_for(
        f"round {round_number} to be asked",
        lambda: any(e["round"] == round_number for e in d.events(name, "asked")),
        240,
    )


@pytest.fixture
def storm(
    up: Any, expected: bytes, wait: Callable[..., object]
) -> Callable[[str, Callable[[Any], None], bool], Any]:
    """Run the plan, strike in round 2, and hold the outcome to the uninterrupted run's."""

    def run(name: str, strike: Callable[[Any], None], resume: bool = False) -> None:
        up.server("run", up.run_plan, "--name", name, "--yes", "--detach")
        begun(up, name, 2, wait)
        strike(up)
        if resume:
            wait("the run to be over", lambda: up.server("resume", name, "--detach", exit_code=None) and any(
                e["kind"] == "resumed" for e in up.events(name)
            ), 200)  # fmt: skip
        wait("the run to finish", lambda: up.events(name, "finished"), 600)
        assert_same(up, name, expected)

    return run


def assert_same(d: Any, name: str, expected: bytes) -> None:
    released = d.run_folder(name) / "release" / "adapter_model.safetensors"
    assert hashlib.sha256(released.read_bytes()).digest() == hashlib.sha256(expected).digest()
    for number in (1, 2, 3):
        manifest = d.run_folder(name) / "checkpoints" / f"round-{number:04d}" / "manifest.json"
        record = json.loads(manifest.read_text())["record"]
        assert record["returned"] == sorted(SITES), "each site counts, and once"
    for site in SITES:
        d.site("audit", "verify", d.sites[site])


def kill(d: Any, who: str, words: str, wait: Callable[..., object]) -> None:
    victim = wait(f"{words} at {who}", lambda: d.processes(who, words), 60)
    for process in victim:  # type: ignore[attr-defined]
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("who", "words", "resume"),
    [
        ("north", "client.node.supernode", False),
        ("north", "client.node.resident", False),
        ("centre", "server.centre.superlink", False),
        ("centre", "flwr-serverapp", True),
    ],
)
def test_kill_9(
    storm: Callable[..., None], wait: Callable[..., object], who: str, words: str, resume: bool
) -> None:
    name = "kill-" + words.rsplit(".", 1)[-1]
    storm(name, lambda d: kill(d, who, words, wait), resume)


def test_kill_9_of_whole_trees(storm: Callable[..., None], wait: Callable[..., object]) -> None:
    """Power fails at a hospital and, a little later, at the centre; both are started again."""

    def strike(d: Any) -> None:
        for who in ("north", "centre"):
            killed = d.running.pop(who)
            killed.kill()
            killed.wait()
        wait("their children to be gone", lambda: not leftovers(d), 30)
        d.start("centre")
        d.start("north")

    storm("power", strike, True)


def leftovers(d: Any) -> list[str]:
    """Command lines of processes of the killed trees that still run."""
    places = (str(d.centre), str(d.sites["north"]))
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [
        line
        for line in listing.splitlines()
        if any(place in line for place in places) and "ps -eo" not in line
    ]


@pytest.mark.parametrize("seconds", [40, 100])
@pytest.mark.parametrize(
    ("who", "words"), [("north", "client.node.supernode"), ("centre", "server.centre.superlink")]
)
def test_stopped_for_a_while(
    storm: Callable[..., None], wait: Callable[..., object], who: str, words: str, seconds: int
) -> None:
    def strike(d: Any) -> None:
        (process,) = d.processes(who, words)
        process.send_signal(signal.SIGSTOP)
        subprocess.run(["sleep", str(seconds)], check=True)
        process.send_signal(signal.SIGCONT)

    name = f"stop-{words.rsplit('.', 1)[-1]}-{seconds}"
    # Flower gives a ServerApp's task up when the SuperLink is silent for about a minute.
    storm(name, strike, who == "centre" and seconds > 60)


@pytest.mark.parametrize("seconds", [30, 100])
def test_link_down(storm: Callable[..., None], seconds: int) -> None:
    def strike(d: Any) -> None:
        d.wire.cut.set()
        subprocess.run(["sleep", str(seconds)], check=True)
        d.wire.cut.clear()

    storm(f"link-{seconds}", strike)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small disk")
def test_the_centres_disk_full(
    deploy: Callable[[str], Any], wait: Callable[..., object], expected: bytes, up: Any
) -> None:
    d = deploy("disk")
    d.centre.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(d.centre)], check=True, capture_output=True
    )
    try:
        d.make_centre()
        toml = d.centre / "centre.toml"
        toml.write_text(toml.read_text().replace("min_free_disk = 500000000", "min_free_disk = 8000000"))
        plan = d.plan(PLAN)
        for seed, name in enumerate(SITES, start=1):
            d.export(name, "--studies", "60", "--seed", str(seed), "--size", "48")
            d.join(name, approve=False)
            d.approve(name, "--plan", plan)
        d.up(SITES)
        d.server("run", plan, "--name", "full", "--yes", "--detach")
        begun(d, "full", 2, wait)
        ballast = d.centre / "ballast"
        fill(ballast)
        said = wait(
            "the centre to say that its disk is full",
            lambda: "the centre's disk is nearly full" in (d.root / "centre.out").read_text(),
            120,
        )
        assert said
        subprocess.run(["sleep", "20"], check=True)
        ballast.unlink()
        wait("the run to finish", lambda: d.events("full", "finished") or resume(d, "full"), 600)
        wait("the run to finish", lambda: d.events("full", "finished"), 600)
        assert_same(d, "full", expected)
    finally:
        d.end()
        subprocess.run(["umount", "-l", str(d.centre)], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb") as stream:
        try:
            while True:
                stream.write(bytes(65536))
                stream.flush()
        except OSError:
            pass


def resume(d: Any, name: str) -> bool:
    """Resume a run that was given up; while it still runs the command says so and changes nothing."""
    return "resumed" in d.server("resume", name, "--detach", exit_code=None)


def test_a_late_update_is_refused_and_said_so(up: Any, wait: Callable[..., object]) -> None:
    """A site that sleeps through the deadline is named; its update is not counted when it wakes."""
    short = up.root / "short.toml"
    text = PLAN.replace("deadline = 400.0", "deadline = 45.0").replace("quorum = 3", "quorum = 2")
    short.write_text(text)
    up.server("run", short, "--name", "late", "--yes", "--detach")
    begun(up, "late", 1, wait)
    (worker,) = up.processes("north", "client.node.resident")
    worker.send_signal(signal.SIGSTOP)
    wait("round 1 to go on without north", lambda: up.events("late", "round"), 120)
    worker.send_signal(signal.SIGCONT)
    wait("the run to finish", lambda: up.events("late", "finished"), 400)
    record = json.loads(str(up.events("late", "round")[0]["facts"]))
    assert record["status"] == "committed"
    assert record["missing"] == ["north"] and record["returned"] == ["east", "south"]
    assert "north missed the deadline" in up.server("status", "late", "--all")
