"""A full disk: what is to be written waits in memory, it is said, and nothing is half there."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from common.adapter import AdapterState
from common.errors import RunError
from server import disk
from server.checkpoint import Checkpoint, commit, committed, read
from server.disk import with_room
from server.ledger import Ledger

PLAN = "a" * 64


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(disk.with_room, "__defaults__", (0.05,))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(size))
    return ballast


def later(do, seconds=0.4):
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


def checkpoint(number=1, values=20_000):
    state = AdapterState({"w": torch.arange(values, dtype=torch.float32)}, {})
    return Checkpoint(number, state, {}, {"round": number, "status": "committed"})


def test_a_round_waits_for_room_and_is_then_committed_whole(small_disk, caplog):
    folder = small_disk / "checkpoints"
    commit(folder, checkpoint(1), PLAN)
    ballast = fill(small_disk)
    timer = later(ballast.unlink)
    with_room(lambda: commit(folder, checkpoint(2), PLAN), "round 2", 10)
    timer.join()
    assert committed(folder) == [1, 2]
    assert torch.equal(read(folder, 2, PLAN).state.tensors["w"], checkpoint(2).state.tensors["w"])
    assert not list(folder.rglob(".*")), "the attempts that failed left nothing"
    said = [record.message for record in caplog.records]
    assert said == [
        "the disk is full: round 2 waits for room, at most 10 s",
        "there is room again: round 2 is written",
    ]


def test_without_room_the_run_ends_clearly_and_what_was_committed_is_kept(small_disk):
    folder = small_disk / "checkpoints"
    commit(folder, checkpoint(1), PLAN)
    fill(small_disk)
    began = time.monotonic()
    with pytest.raises(RunError, match="round 2 cannot be written") as caught:
        with_room(lambda: commit(folder, checkpoint(2), PLAN), "round 2", 0.4)
    assert 0.4 <= time.monotonic() - began < 5
    assert "resume" in caught.value.fix
    assert committed(folder) == [1] and read(folder, 1, PLAN).round == 1


def test_the_ledger_waits_for_room_and_loses_and_doubles_nothing(small_disk):
    ledger = Ledger(small_disk / "ledger.sqlite", patience=10)
    ledger.event("plan", "before")
    ballast = fill(small_disk)
    timer = later(ballast.unlink)
    for number in range(200):
        ledger.event("round", "x" * 500, round=number)
    ledger.reset_rounds([{"round": number, "text": "y" * 500} for number in range(50)])
    timer.join()
    assert [e.round for e in ledger.events() if e.kind == "round"] == list(range(200))
    assert len(ledger.rounds()) == 50
    ledger.close()


def test_a_transaction_that_finds_no_room_leaves_the_ledger_as_it_was(small_disk):
    ledger = Ledger(small_disk / "ledger.sqlite", patience=0.0)
    ledger.reset_rounds([{"round": 1}])
    ballast = fill(small_disk)
    with pytest.raises(RunError, match="the ledger cannot be written"):
        ledger.reset_rounds([{"round": number, "text": "y" * 5000} for number in range(100)])
    assert ledger.rounds() == [{"round": 1}]
    ballast.unlink()
    ledger.reset_rounds([{"round": 2}])
    assert ledger.rounds() == [{"round": 2}]
    ledger.close()


def test_a_full_disk_does_not_keep_anybody_from_reading(small_disk):
    file = small_disk / "ledger.sqlite"
    writer = Ledger(file)
    writer.event("plan", "there")
    fill(small_disk)
    reader = Ledger(file)
    assert [event.text for event in reader.events()] == ["there"]
    reader.close()
    writer.close()


def test_a_limit_on_a_files_size_is_a_full_disk_too(tmp_path):
    """Without root: the kernel's limit on the size of files, in a process of its own."""
    script = """
import resource, signal, sys
from pathlib import Path
from common.errors import RunError
from common.files import write_atomic
from server.disk import with_room
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
place = Path(sys.argv[1])
write_atomic(place / "small", bytes(5_000))
try:
    with_room(lambda: write_atomic(place / "large", bytes(50_000)), "round 9", 0.3, 0.1)
except RunError as error:
    print(error.problem)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "the disk is full: round 9 cannot be written\n"
    assert "waits for room" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_another_failure_is_not_waited_for(tmp_path):
    attempts = []

    def write():
        attempts.append(1)
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        with_room(write, "round 1", 60)
    assert len(attempts) == 1
