"""Workers as processes: what they may and see, and that they end with those they work for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from client.data.decoder_process import Limits
from client.data.workers import Workers, shared_workers
from tests.client.data.decoding import ROOT, gone, read


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
