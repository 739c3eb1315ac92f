"""Rows on disk: computed once by whoever comes first, right after any kill, gone when there is no room."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import client.activations as activations
from client.activations import Compute, Digests, Disk, Memory, Place, digests_of
from common.files import locked

WIDTH = 5
STRIDE = WIDTH * 2
HALF = np.dtype(np.float16)
PLENTY = 10**9


def inputs(*values: int) -> Digests:
    """Digests of inputs that are known by a number."""
    return digests_of(np.array(values, dtype=np.int64).reshape(-1, 1))


def rows_of(*values: int) -> NDArray[np.float16]:
    """What is to be computed of them."""
    return (np.array(values)[:, None] * 10 + np.arange(WIDTH)).astype(np.float16)


def computing(*values: int, log: list[int] | None = None) -> Compute:
    def compute(positions: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        for i in range(0, len(positions), 3):
            some = [values[p] for p in positions[i : i + 3]]
            if log is not None:
                log.extend(some)
            yield rows_of(*some)

    return compute


def never(positions: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    raise AssertionError("this was computed before")


@pytest.fixture
def disk(tmp_path: Path) -> Callable[..., Disk]:
    def make(name: str = "one", limit: int = PLENTY, present: Digests | None = None) -> Disk:
        everything = inputs(*range(100)) if present is None else present
        return Disk(Place(tmp_path / "cache", limit), {"name": name}, HALF, everything)

    return make


def holds(store: Disk | Memory, *values: int) -> bool:
    """Whether the store has these, and rightly."""
    at = store.find(inputs(*values))
    return bool((at >= 0).all()) and np.array_equal(store.take(at), rows_of(*values))


def test_what_one_computes_another_finds(disk: Callable[..., Disk]) -> None:
    log: list[int] = []
    first = disk()
    assert first.find(inputs(1, 2)).tolist() == [-1, -1]
    assert first.add(inputs(4, 2, 7, 2, 9), computing(4, 2, 7, 2, 9, log=log))
    assert log == [4, 2, 7, 9]  # each once
    assert holds(first, 9, 2, 2, 4)
    other = disk()
    assert holds(other, 7, 4) and other.find(inputs(1)).tolist() == [-1]
    assert other.add(inputs(9, 2), never)
    assert other.add(inputs(1, 9), computing(1, 9, log=log)) and log[4:] == [1]
    assert holds(other, 1, 2, 4, 7, 9)
    assert holds(first, 9, 2, 2, 4) and not holds(first, 1)  # what it has mapped stays as it was
    assert first.add(inputs(1), never) and holds(first, 1, 4)


def test_other_computations_have_other_files(disk: Callable[..., Disk], tmp_path: Path) -> None:
    assert disk("one").add(inputs(1), computing(1))
    assert not holds(disk("two"), 1)
    wide = Disk(Place(tmp_path / "cache", PLENTY), {"name": "one"}, np.dtype(np.float32), inputs(1))
    assert wide.find(inputs(1)).tolist() == [-1]


def test_only_the_owner_can_read_it(disk: Callable[..., Disk], tmp_path: Path) -> None:
    disk().add(inputs(1), computing(1))
    folder = tmp_path / "cache"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(folder.iterdir())
    assert {file.suffix for file in files} == {".data", ".json", ".lock", ".rows"}
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=8), min_size=1, max_size=5))
def test_whatever_comes_in_whatever_order_every_row_is_its_own(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    place = Place(tmp_path_factory.mktemp("law"), PLENTY)
    memory = Memory(PLENTY)
    seen: set[int] = set()
    for batch in batches:
        store = Disk(place, {}, HALF, inputs(*range(21)))
        assert store.add(inputs(*batch), computing(*batch)) and memory.add(inputs(*batch), computing(*batch))
        seen |= {*batch}
        for kept in (store, memory):
            assert holds(kept, *seen)
            assert (kept.find(inputs(*range(21))) >= 0).tolist() == [value in seen for value in range(21)]


# ---------------------------------------------------------------- kills and neighbours

CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
import client.activations as activations
from client.activations import Disk, Place, digests_of
activations._CHUNK = 1
folder, first, last, die = Path(sys.argv[1]), *map(int, sys.argv[2:])
values = np.arange(first, last)
def compute(positions):
    for count, p in enumerate(positions):
        if count == die:
            os.kill(os.getpid(), signal.SIGKILL)
        print(values[p], flush=True)
        yield (values[[p]][:, None] * 10 + np.arange(5)).astype(np.float16)
everything = digests_of(np.arange(100).reshape(-1, 1))
store = Disk(Place(folder, 10**9), {"name": "one"}, np.dtype(np.float16), everything)
assert store.add(digests_of(values.reshape(-1, 1)), compute)
"""


def child(folder: Path, first: int, last: int, die: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(folder), str(first), str(last), str(die)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_after_a_kill_the_rows_that_are_there_are_right(disk: Callable[..., Disk], tmp_path: Path) -> None:
    process = child(tmp_path / "cache", 0, 9, die=5)
    said = process.communicate(timeout=60)[0].split()
    assert process.returncode == -9 and said == list("01234")
    data = next((tmp_path / "cache").glob("*.data"))
    assert data.stat().st_size == 9 * STRIDE  # what was reserved for the rest is still there
    store = disk()
    assert holds(store, 0, 1, 2, 3, 4) and not holds(store, 5)
    log: list[int] = []
    assert store.add(inputs(*range(12)), computing(*range(12), log=log))
    assert log == [5, 6, 7, 8, 9, 10, 11] and holds(store, *range(12))
    assert data.stat().st_size == 12 * STRIDE


def test_two_processes_compute_each_row_once(disk: Callable[..., Disk], tmp_path: Path) -> None:
    both = [child(tmp_path / "cache", 0, 40), child(tmp_path / "cache", 20, 60)]
    said = [int(line) for process in both for line in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(said) == list(range(60))
    assert holds(disk(), *range(60))


def test_a_torn_journal_or_reserved_space_vouches_for_nothing(
    disk: Callable[..., Disk], tmp_path: Path
) -> None:
    disk().add(inputs(1, 2), computing(1, 2))
    journal = next((tmp_path / "cache").glob("*.rows"))
    with journal.open("ab") as stream:
        stream.write(inputs(3).tobytes()[:7])
    assert holds(disk(), 1, 2)
    store = disk()
    assert store.add(inputs(3), computing(3)) and holds(disk(), 1, 2, 3)


@pytest.mark.parametrize("suffix", [".data", ".json", ".rows"])
@pytest.mark.parametrize("how", ["cut", "gone", "noise"])
def test_what_is_damaged_is_computed_again(
    disk: Callable[..., Disk], tmp_path: Path, suffix: str, how: str
) -> None:
    disk().add(inputs(1, 2, 3), computing(1, 2, 3))
    file = next((tmp_path / "cache").glob(f"*{suffix}"))
    if how == "gone":
        file.unlink()
    elif how == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif suffix == ".data":
        file.write_bytes(b"")
    else:
        file.write_bytes(b"\xff" * file.stat().st_size)
    log: list[int] = []
    store = disk()
    assert store.add(inputs(1, 2, 3), computing(1, 2, 3, log=log))
    assert log and holds(store, 1, 2, 3) and holds(disk(), 1, 2, 3)


def test_a_picture_that_left_the_site_leaves_with_all_beside_it(
    disk: Callable[..., Disk], tmp_path: Path
) -> None:
    disk().add(inputs(1, 2, 3), computing(1, 2, 3))
    left = disk(present=inputs(1, 3, 4))
    assert left.find(inputs(1, 2, 3)).tolist() == [-1] * 3
    assert not [*(tmp_path / "cache").glob("*.data")]


# ---------------------------------------------------------------- room


def used(folder: Path, name: str, when: float) -> None:
    """Set when a computation was used last."""
    told = next(file for file in folder.glob("*.json") if f'"{name}"' in file.read_text())
    os.utime(told.with_suffix(".rows"), (when, when))


def test_what_was_used_longest_ago_goes(disk: Callable[..., Disk], tmp_path: Path) -> None:
    room = 6 * STRIDE
    for when, name in enumerate(("first", "second", "third")):
        assert disk(name, room).add(inputs(1, 2), computing(1, 2))
        used(tmp_path / "cache", name, when)
    mapped = disk("second", room)
    used(tmp_path / "cache", "second", 1)
    assert holds(disk("first", room), 1, 2)  # used just now, as opening it tells
    assert disk("fourth", room).add(inputs(1), computing(1))
    there = {name: holds(disk(name, room), 1) for name in ("first", "second", "third", "fourth")}
    assert there == {"first": True, "second": False, "third": True, "fourth": True}
    assert holds(mapped, 1, 2)  # whoever has it mapped reads on


def test_more_than_the_limit_is_not_taken(disk: Callable[..., Disk], tmp_path: Path) -> None:
    assert disk("other", 4 * STRIDE).add(inputs(1), computing(1))
    store = disk("one", 4 * STRIDE)
    assert not store.add(inputs(*range(5)), computing(*range(5)))
    assert not holds(store, 0) and holds(disk("other"), 1)  # nobody made room in vain
    assert store.add(inputs(*range(4)), computing(*range(4))) and not holds(disk("other"), 1)
    assert not disk("none", 0).add(inputs(1), computing(1))
    assert not Memory(3 * STRIDE).add(inputs(*range(4)), computing(*range(4)))


def test_what_another_process_is_at_does_not_go(disk: Callable[..., Disk], tmp_path: Path) -> None:
    room = 2 * STRIDE
    assert disk("busy", room).add(inputs(1, 2), computing(1, 2))
    lock = next((tmp_path / "cache").glob("*.data")).with_suffix(".lock")
    with locked(lock):
        assert not disk("one", room).add(inputs(1), computing(1))
    assert holds(disk("busy", room), 1, 2)
    assert disk("one", room).add(inputs(1), computing(1))


def test_some_of_the_disk_stays_free(disk: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk("other").add(inputs(1), computing(1))
    monkeypatch.setattr(activations, "RESERVE", 2**60)
    assert not disk().add(inputs(1), computing(1))
    assert holds(disk("other"), 1)


FULL = """
import resource, sys
sys.argv[4:4] = ["-1"]
resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
try:
    exec(CHILD)
except OSError as error:
    sys.exit(7)
"""


def test_a_disk_that_takes_no_more_leaves_what_was_there(disk: Callable[..., Disk], tmp_path: Path) -> None:
    """A limit on the size of files, which fails as a full disk does, at the first byte too many."""
    assert disk().add(inputs(0, 1, 2), computing(0, 1, 2))
    command = [sys.executable, "-c", f"CHILD = {CHILD!r}\n{FULL}", str(tmp_path / "cache"), "0", "40"]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], timeout=60, check=False).returncode == 7
    store = disk()
    assert holds(store, 0, 1, 2) and store.find(inputs(3)).tolist() == [-1]
    assert store.add(inputs(3, 4), computing(3, 4)) and holds(store, 0, 1, 2, 3, 4)
