"""Decoding in processes we can lose: the right results in order, whatever one file does."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.decoder_process import MAIN, BrokenReply, Limits, check_head
from client.data.facts import Facts
from client.data.image import examine
from client.data.transforms import standardise
from client.data.workers import Workers, shared_workers
from common.errors import DataError

SIZE = 32
ROOT = Path(__file__).resolve().parents[3]

STUNTS = """
import client.data.image as image, os, signal, time
read = image._bytes

def perform(path):
    if "hang" in path.name:
        time.sleep(60)
    if "spin" in path.name:
        while True:
            pass
    if "crash" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "memory" in path.name:
        bytearray(2 ** 30)
    return read(path)

image._bytes = perform
"""
"""What a worker does for a file of a telling name, before it reads it."""


def stunts(body: str) -> str:
    """Make a worker's main program that patches its decoder first."""
    path = "import sys\nsys.path = sys.argv[4:]\n"
    return path + textwrap.dedent(body) + MAIN


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., list[Path]]:
    def make(*names: str) -> list[Path]:
        paths = []
        for i, name in enumerate(names):
            noise = np.random.default_rng(i).integers(0, 256, (40 + i, 50)).astype(np.uint8)
            paths.append(tmp_path / f"{name}.png")
            Image.fromarray(noise).save(paths[-1])
        return paths

    return make


@pytest.fixture(scope="module")
def pair() -> Iterator[Workers]:
    """Two workers for the tests that do them no harm."""
    with Workers(2) as workers:
        yield workers


def sound(path: Path) -> tuple[Facts, np.ndarray | None]:
    facts, picture = examine(path)
    return facts, None if picture is None else standardise(picture, SIZE, "crop")


def read(workers: Workers, paths: list[Path]) -> list[tuple[Facts, np.ndarray | None]]:
    return list(workers.read(paths, SIZE, "crop", "refuse"))


def same(got: list[tuple[Facts, np.ndarray | None]], paths: list[Path], reasons: list[str]) -> None:
    """Check that files have these reasons, and those without one what they have without workers."""
    assert [facts.reason for facts, _ in got] == reasons
    for (facts, pixels), path, reason in zip(got, paths, reasons, strict=True):
        if not reason:
            expected, values = sound(path)
            assert facts == expected
            np.testing.assert_array_equal(pixels, values)


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Tell whether a process ends in time, leaving no zombie."""
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


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


def replying(reply: str) -> str:
    """Make a main program that answers for files named "bad" with the bytes of an expression."""
    return stunts(
        f"""
        import client.data.decoder as decoder, json, pickle, struct
        sound = decoder.answer

        def head(*facts):
            text = json.dumps(facts).encode()
            return struct.pack(">I", len(text)) + text

        def answer(index, path, **asked):
            right = sound(index, path, **asked)
            return {reply} if "bad" in path else right

        decoder.answer = answer
        """
    )


@pytest.mark.parametrize(
    "reply",
    ["pickle.dumps(right)", "head(index + 1, *[''] * 11) + bytes(32 * 32)"],
)
def test_a_reply_that_is_not_sound_is_not_used(make_pictures: Callable[..., list[Path]], reply: str) -> None:
    paths = make_pictures("a", "bad", *"cd")
    with Workers(1, main=replying(reply)) as workers:
        got = read(workers, paths)
    same(got, paths, ["", "crashed", "", ""])
    assert got[1] == (Facts(reason="crashed"), None)


@pytest.mark.parametrize("more", ["b'0'", "right"])
def test_what_comes_unasked_is_not_the_next_file(make_pictures: Callable[..., list[Path]], more: str) -> None:
    paths = make_pictures("a", "bad", *"cd")
    with Workers(1, main=replying(f"right + {more}")) as workers:
        same(read(workers, paths), paths, [""] * 4)


def test_a_reply_that_does_not_end_is_a_timeout(make_pictures: Callable[..., list[Path]]) -> None:
    paths = make_pictures("a", "bad")
    with Workers(1, Limits(seconds=0.8), main=replying("right[:-9]")) as workers:
        same(read(workers, paths), paths, ["", "timeout"])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff",
        b"{}",
        b"4",
        b"[]",
        b"[4]",
        b"[" * 5000,
        json.dumps([4, *[""] * 10]).encode(),
        json.dumps([3, *[""] * 11]).encode(),
        json.dumps([4, "duplicates", *[""] * 10]).encode(),
        json.dumps([4, "", "a\0b", *[""] * 9]).encode(),
        json.dumps([4, "", "\ud800", *[""] * 9]).encode(),
        json.dumps([4, *[""] * 9, "A" * 64, ""]).encode(),
        json.dumps([4, *[""] * 10, "0" * 63]).encode(),
    ],
)
def test_facts_that_are_none(head: bytes) -> None:
    with pytest.raises(BrokenReply):
        check_head(head, 4)


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


def test_what_a_worker_may_and_sees(
    make_pictures: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with Workers(1, Limits(memory=900_000_000)) as workers:
        read(workers, make_pictures("a"))
        process = Path(f"/proc/{workers.pids[0]}")
        limits = {
            line[:26].strip(): line[26:].split()[:2] for line in (process / "limits").read_text().splitlines()
        }
        assert limits["Max address space"] == ["900000000", "900000000"]
        assert limits["Max core file size"] == ["0", "0"]
        assert limits["Max file size"] == ["0", "0"]
        assert limits["Max open files"] == ["64", "64"]
        assert int(limits["Max cpu time"][0]) < 60
        assert [str((process / "fd" / str(i)).readlink()) for i in range(3)] == ["/dev/null"] * 3
        assert "secret" not in (process / "environ").read_text()
        assert (process / "cwd").readlink() == Path("/")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        assert status["Threads"].strip() == "1"
        assert int(status["VmHWM"].split()[0]) * 1024 < 200_000_000


def run(script: str, *arguments: str) -> str:
    """Run a script file, with no guard of its main module, as people write them."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_few_modules_are_loaded_on_either_side(make_pictures: Callable[..., list[Path]]) -> None:
    heavy = {"torch", "pandas", "sklearn", "pyarrow", "pydantic", "flwr", "matplotlib"}
    loaded = run("import client.data.workers, sys; print(*sys.modules)").split()
    assert not (heavy | {"pydicom", "PIL", "scipy"}) & set(loaded)
    loaded = run("import client.data.decoder as d, sys; d._warm_up(); print(*sys.modules)").split()
    assert not heavy & set(loaded)


def test_a_plain_script_is_not_run_twice_and_closes(
    make_pictures: Callable[..., list[Path]], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from client.data.workers import shared_workers
            print("once")
            for facts, pixels in shared_workers().read([Path(sys.argv[1])], 32, "crop", "refuse"):
                print(facts.reason, pixels.shape, *shared_workers().pids)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script), str(make_pictures("a")[0])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    once, result = done.stdout.splitlines()
    assert (once, done.stderr) == ("once", "")
    assert gone(int(result.split()[-1]), 0)


@pytest.mark.parametrize("heir", [False, True])
def test_workers_die_with_their_parent(make_pictures: Callable[..., list[Path]], heir: bool) -> None:
    """Also if a fork of the parent holds its end of the connection."""
    script = """
        import os, signal, sys, time
        from pathlib import Path
        from client.data.decoder_process import MAIN
        from client.data.workers import Workers
        soon = "import client.data.decoder\\nclient.data.decoder._IDLE = 0.1\\n"
        workers = Workers(1, main="import sys\\nsys.path = sys.argv[4:]\\n" + soon + MAIN)
        list(workers.read([Path(sys.argv[1])], 32, "crop", "refuse"))
        child = os.fork() if sys.argv[2] == "True" else None
        if child == 0:
            for stream in (0, 1, 2):
                os.close(stream)
            time.sleep(60)
            os._exit(0)
        print(*workers.pids, child or 0, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(make_pictures("a")[0]), str(heir)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    worker, child = map(int, done.stdout.split())
    try:
        assert gone(worker)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_a_fork_has_workers_of_its_own(make_pictures: Callable[..., list[Path]]) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from client.data.workers import shared_workers
        path = Path(sys.argv[1])
        read = lambda: [facts.reason for facts, _ in shared_workers().read([path] * 3, 32, "crop", "refuse")]
        assert read() == [""] * 3
        mine = shared_workers()
        if (child := os.fork()) == 0:
            assert shared_workers() is not mine
            assert read() == [""] * 3
            mine.close()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        pids = mine.pids
        assert read() == [""] * 3
        assert mine.pids == pids
        print("well")
    """
    assert run(script, str(make_pictures("a")[0])) == "well\n"


def test_shared_workers_are_one_for_each_cpu() -> None:
    assert shared_workers() is shared_workers()
    assert shared_workers().number == min(8, len(os.sched_getaffinity(0)))


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
