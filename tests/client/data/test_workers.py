"""Decoding in processes we can lose: the right results in order, whatever one file does."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from client.data.decoder_process import Limits
from client.data.image import examine
from client.data.transforms import standardise
from client.data.workers import Workers
from common.errors import DataError
from tests.client.data.decoding import SIZE, STUNTS, gone, read, same, stunts


@pytest.fixture(scope="module")
def pair() -> Iterator[Workers]:
    """Two workers for the tests that do them no harm."""
    with Workers(2) as workers:
        yield workers


def test_results_are_those_of_no_workers_in_order(
    make_pictures: Callable[..., list[Path]], tmp_path: Path, pair: Workers
) -> None:
    paths = make_pictures(*(f"{i:02d}" for i in range(40)))
    paths[7] = tmp_path / "absent.png"
    paths[9].write_bytes(b"notes")
    reasons = [""] * 40
    reasons[7], reasons[9] = "missing", "not-an-image"
    with Workers(1) as alone:
        for workers in (pair, alone):
            same(read(workers, paths), paths, reasons)
            same(read(workers, paths[:1]), paths[:1], [""])


def test_sizes_and_fits_and_odd_paths(
    make_pictures: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch, pair: Workers
) -> None:
    paths = make_pictures("a b", "ü", "\udcff", "x" * 200)
    monkeypatch.chdir(paths[0].parent)
    relative = [Path(path.name) for path in paths]
    for size, fit in ((16, "crop"), (600, "pad")):
        for path, (facts, pixels) in zip(paths, pair.read(relative, size, fit, "accept"), strict=True):
            picture = examine(path)[1]
            assert facts.reason == ""
            assert picture is not None
            np.testing.assert_array_equal(pixels, standardise(picture, size, fit))


def test_workers_start_late_and_stay_and_leave_nothing(make_pictures: Callable[..., list[Path]]) -> None:
    paths = make_pictures("a", "b", "c")
    workers = Workers(2)
    assert workers.pids == []
    assert read(workers, []) == []
    assert workers.pids == []
    read(workers, paths[:1])
    first = workers.pids
    assert len(first) == 1
    read(workers, paths)
    pids = workers.pids
    assert set(first) < set(pids)
    assert len(pids) == 2
    read(workers, paths)
    assert workers.pids == pids
    workers.close()
    assert workers.pids == []
    assert all(gone(pid, 0) for pid in pids)
    same(read(workers, paths), paths, [""] * 3)
    workers.close()


def test_paths_are_taken_as_needed(make_pictures: Callable[..., list[Path]], pair: Workers) -> None:
    (path,) = make_pictures("a")
    taken: list[int] = []

    def endless() -> Iterator[Path]:
        for i in count():
            taken.append(i)
            yield path

    results = pair.read(endless(), SIZE, "crop", "refuse")
    assert len(list(islice(results, 100))) == 100
    assert len(taken) < 300
    results.close()
    same(read(pair, [path]), [path], [""])


def test_a_file_that_does_harm_costs_itself(
    make_pictures: Callable[..., list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_pictures("a", "b", "hang", "c", "crash", "memory", "d", "spin", *"efghij")
    reasons = ["", "", "timeout", "", "crashed", "memory", "", "timeout", *[""] * 6]
    with Workers(2, Limits(seconds=1.5), stunts(STUNTS)) as workers:
        same(read(workers, paths), paths, reasons)
        same(read(workers, paths[4:6]), paths[4:6], reasons[4:6])
        pids = workers.pids
    assert all(gone(pid, 0) for pid in pids)
    assert not any(str(path) in caplog.text for path in paths)


def test_a_stopped_worker_is_a_timeout(make_pictures: Callable[..., list[Path]]) -> None:
    paths = make_pictures(*"abcdef")
    with Workers(2, Limits(seconds=1.0)) as workers:
        read(workers, paths)
        os.kill(workers.pids[0], signal.SIGSTOP)
        got = read(workers, paths)
        reasons = [facts.reason for facts, _ in got]
        assert reasons.count("timeout") == 1
        same(got, paths, reasons)


def test_a_worker_killed_from_outside_costs_nothing(make_pictures: Callable[..., list[Path]]) -> None:
    paths = make_pictures(*"abcdefgh")
    with Workers(2) as workers:
        results = workers.read(paths * 20, SIZE, "crop", "refuse")
        got = list(islice(results, 3))
        for pid in workers.pids:
            os.kill(pid, signal.SIGKILL)
        same([*got, *results], paths * 20, [""] * 160)
        for pid in workers.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        same(read(workers, paths), paths, [""] * 8)


def test_workers_that_do_not_start_are_nobodys_fault(make_pictures: Callable[..., list[Path]]) -> None:
    with (
        Workers(2, main="raise SystemExit(3)") as workers,
        pytest.raises(DataError, match="exit status 3") as caught,
    ):
        read(workers, make_pictures("Doe^Jane"))
    assert "Doe^Jane" not in str(caught.value)


def test_workers_closed_while_in_use_blame_no_file(make_pictures: Callable[..., list[Path]]) -> None:
    paths = make_pictures("a", "b", "hang")
    workers = Workers(1, main=stunts(STUNTS))
    results = workers.read(paths, SIZE, "crop", "refuse")
    next(results)
    threading.Timer(0.2, workers.close).start()
    with pytest.raises(DataError, match="closed"):
        list(results)


def test_a_slow_reader_is_not_the_workers_fault(make_pictures: Callable[..., list[Path]]) -> None:
    paths = make_pictures(*"abcdefgh")
    with Workers(2, Limits(seconds=1.0)) as workers:
        got = []
        for result in workers.read(paths, SIZE, "crop", "refuse"):
            got.append(result)
            if len(got) == 1:
                time.sleep(1.2)
        same(got, paths, [""] * 8)


def test_several_calls_at_once(make_pictures: Callable[..., list[Path]], pair: Workers) -> None:
    paths = make_pictures(*"abcdef")
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(lambda _: read(pair, paths * 5), range(2)):
            same(got, paths * 5, [""] * 30)
    inner = pair.read(paths, SIZE, "crop", "refuse")
    same([next(inner), *read(pair, paths), *inner], [paths[0], *paths, *paths[1:]], [""] * 12)
    assert len(pair.pids) == 2


def test_nothing_of_a_file_is_logged(
    make_pictures: Callable[..., list[Path]], planted: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    paths = make_pictures(f"crash {planted[0]}", planted[1])
    main = stunts(STUNTS)
    with Workers(1, main=main) as workers:
        assert [facts.reason for facts, _ in read(workers, paths)] == ["crashed", ""]
    assert not any(word in caplog.text for word in planted)
    assert "replaced (crashed)" in caplog.text
