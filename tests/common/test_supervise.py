"""The supervisor with real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import supervise
from common.logs import RotatingLog
from common.supervise import Child, Delays, Supervisor, flower_environment

SLEEPS = (sys.executable, "-S", "-c", "import time; print('here', flush=True); time.sleep(600)")


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Running:
    def __init__(self, logs: Path, *children: Child) -> None:
        self.logs = logs
        self.said: list[str] = []
        self.heard: list[tuple[str, str]] = []
        self.supervisor = Supervisor(children, logs, self.said.append, lambda *line: self.heard.append(line))
        self.thread = threading.Thread(target=self.supervisor.run)
        self.thread.start()

    def facts(self, name: str) -> dict[str, float | None]:
        try:
            return dict(json.loads((self.logs / "processes.json").read_text())[name])
        except (OSError, KeyError):
            return {}

    def pid(self, name: str) -> int:
        wait_for(lambda: self.facts(name).get("pid"))
        return int(self.facts(name)["pid"] or 0)

    def stop(self) -> None:
        self.supervisor.stop()
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*children: Child) -> Running:
        started.append(Running(tmp_path / "logs", *children))
        return started[-1]

    yield start
    for running in started:
        running.stop()


def test_a_killed_child_is_started_again_and_it_is_said(run: Callable[..., Running]) -> None:
    running = run(Child("a", SLEEPS), Child("b", SLEEPS))
    first, other = running.pid("a"), running.pid("b")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: running.facts("a").get("restarts") == 1)
    assert running.pid("a") != first and alive(running.pid("a"))
    assert running.facts("a")["last_exit"] == -9
    assert running.pid("b") == other
    assert running.said == ["a ended (killed by SIGKILL); starting it again in 0.5 s"]
    wait_for(lambda: running.heard.count(("a", "here")) == 2)
    assert (running.logs / "a.log").read_text() == "here\nhere\n"


def test_what_a_dead_child_left_behind_is_ended(run: Callable[..., Running], tmp_path: Path) -> None:
    code = f"sleep 600 & echo $! > {tmp_path}/grandchild; wait"
    running = run(Child("a", ("/bin/sh", "-c", code)))
    child = running.pid("a")
    wait_for(lambda: (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text())
    grandchild = int((tmp_path / "grandchild").read_text())
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: not alive(grandchild))


def test_children_stop_in_reverse_order(run: Callable[..., Running], tmp_path: Path) -> None:
    code = "trap 'sleep 0.2; echo {0} >> {1}; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    file = tmp_path / "order"
    running = run(*(Child(n, ("/bin/sh", "-c", code.format(n, file))) for n in ("a", "b", "c")))
    wait_for(lambda: len(running.heard) == 3)
    running.stop()
    assert file.read_text().split() == ["c", "b", "a"]
    assert running.facts("a")["pid"] is None


def test_a_child_that_does_not_listen_is_killed(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "PATIENCE", 0.5)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('x', flush=True); time.sleep(600)"
    running = run(Child("deaf", (sys.executable, "-S", "-c", deaf)))
    wait_for(lambda: running.heard)
    pid = running.pid("deaf")
    started = time.monotonic()
    running.stop()
    assert 0.4 < time.monotonic() - started < 5
    assert not alive(pid)


def test_a_child_that_never_starts_is_said_with_its_last_lines(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "FIRST_DELAY", 0.01)
    running = run(Child("bad", ("/bin/sh", "-c", "echo the port is taken; exit 3")))
    wait_for(lambda: len(running.said) == 6)
    assert running.said[4] == "bad ended (exit code 3); starting it again in 30 s"
    assert "bad does not start: it ended 5 times" in running.said[5]
    assert "\n    the port is taken" in running.said[5]


def test_a_command_that_does_not_exist_is_said(run: Callable[..., Running]) -> None:
    running = run(Child("none", ("/nowhere/at-all",)), Child("b", SLEEPS))
    wait_for(lambda: running.said)
    assert running.said[0] == ("none cannot be started: No such file or directory; trying again in 0.5 s")
    assert alive(running.pid("b"))


def test_an_end_that_is_part_of_the_work_has_its_own_delay(run: Callable[..., Running]) -> None:
    running = run(Child("a", ("/bin/sh", "-c", "exit 75"), wait_after={75: 0.1}))
    wait_for(lambda: len(running.said) >= 7)
    assert set(running.said) == {"a ended (exit code 75); starting it again in 0.1 s"}


def test_delays_grow_and_begin_anew_after_a_steady_minute() -> None:
    delays = Delays()
    waits = [delays.after(code, 1, now=10 * code) for code in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert delays.after(1, lived=61, now=200) == 0.5
    for now in (201, 202, 203, 204):
        wait = delays.after(1, 0.1, now)
    assert wait == 30 and delays.stuck and delays.stuck_since_now
    delays.after(1, 0.1, 205)
    assert delays.stuck and not delays.stuck_since_now


def test_a_flood_of_output_blocks_nobody_and_loses_no_line(run: Callable[..., Running]) -> None:
    flood = (
        "import sys\nfor i in range(60000): sys.stdout.write(f'{i} ' + 'x' * 90 + '\\n')\nsys.stdout.flush()"
    )
    code = f"{flood}\nimport time; time.sleep(600)"
    running = run(Child("a", (sys.executable, "-S", "-c", code)))
    wait_for(lambda: running.heard and running.heard[-1][1].startswith("59999 "), 20)
    assert [int(line.split()[0]) for _, line in running.heard] == list(range(60000))


def test_a_listener_who_is_gone_stops_nobody(tmp_path: Path) -> None:
    def gone(*_: str) -> None:
        raise BrokenPipeError

    code = "while :; do echo a line; sleep 0.02; done"
    supervisor = Supervisor([Child("a", ("/bin/sh", "-c", code))], tmp_path, gone, gone)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    wait_for(lambda: (tmp_path / "a.log").exists() and (tmp_path / "a.log").stat().st_size > 50)
    os.kill(int(json.loads((tmp_path / "processes.json").read_text())["a"]["pid"]), signal.SIGKILL)
    wait_for(lambda: json.loads((tmp_path / "processes.json").read_text())["a"]["restarts"] == 1)
    supervisor.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_log_is_rotated_between_lines(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", size=100, keep=3)
    for i in range(30):
        log.write(f"line {i:03}\n".encode())
    log.close()
    parts = [tmp_path / "a.log.2", tmp_path / "a.log.1", tmp_path / "a.log"]
    assert sorted(tmp_path.iterdir()) == sorted(parts)
    assert all(part.stat().st_size <= 100 for part in parts)
    text = "".join(part.read_text() for part in parts).split("\n")
    assert text[:-1] == [f"line {i:03}" for i in range(30)][-len(text) + 1 :]
    assert (tmp_path / "a.log").stat().st_mode & 0o077 == 0


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    log = RotatingLog(Path("/dev/full"))
    log.write(b"a line\n")
    log.write(b"another\n")
    log.close()
    assert log.lost == 2


SUPERVISOR = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as if nothing above were started with nohup
from pathlib import Path
from common.supervise import Child, Supervisor
sleeps = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
children = [Child(name, sleeps) for name in ("a", "b")]
sys.exit(Supervisor(children, Path(sys.argv[1]), lambda line: print(line, flush=True)).run())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_children_die_with_the_supervisor_however_it_ends(tmp_path: Path, number: int) -> None:
    logs = tmp_path / "logs"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(logs)])
    try:
        wait_for(lambda: (logs / "processes.json").exists())
        pids: list[int] = []

        def both() -> bool:
            facts = json.loads((logs / "processes.json").read_text())
            pids[:] = [f["pid"] for f in facts.values() if f["pid"]]
            return len(pids) == 2

        wait_for(both)
        assert all(map(alive, pids))
        supervisor.send_signal(number)
        assert supervisor.wait(10) == (-9 if number == signal.SIGKILL else 0)
        wait_for(lambda: not any(map(alive, pids)))
    finally:
        supervisor.kill()
        supervisor.wait()


def test_flower_runs_at_home_and_finds_its_scripts(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert Path(supervise.command("flower-superexec")).exists()
