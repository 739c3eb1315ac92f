"""Keep a handful of child processes running: restart the dead, log their output, stop them all.

What a child writes goes to ``NAME.log``, rotated by size; a child never waits for a slow disk, and a
full one costs lines of the log and nothing else. When the supervisor itself dies, however it dies,
the kernel ends its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from common.files import write_atomic
from common.logs import RotatingLog

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
STEADY_AFTER = 60.0
"""Seconds after which a child counts as started well: its next death begins the delays anew."""
FALSE_STARTS = 5
"""Deaths of one exit code within a minute after which it is said that a child does not start."""
PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL."""
_TICK = 0.1
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

Say = Callable[[str], None]
Listen = Callable[[str, str], None]


@dataclass(frozen=True)
class Child:
    """A process to keep running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to ours."""
    wait_after: Mapping[int, float] = field(default_factory=dict)
    """Exit code -> seconds until the next start: an end that is part of its work and no failure."""


class Supervisor:
    """Starts children in their order, restarts what ends, and stops them in reverse order."""

    def __init__(self, children: Sequence[Child], logs: Path, say: Say, listen: Listen | None = None) -> None:
        """Take the children; ``listen(name, line)`` gets every line they write, on other threads."""
        self.logs = logs
        self._tell = say
        self._kept = [_Kept(child, RotatingLog(logs / f"{child.name}.log"), listen) for child in children]
        self._stop = threading.Event()
        self._hurry = threading.Event()

    def run(self) -> int:
        """Run until SIGTERM, SIGINT, SIGHUP or `stop`; returns 0.

        Children die with the thread that calls this, so call it from the main thread.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._signals():
            try:
                while not self._stop.wait(_TICK):
                    changed = [self._look_after(kept) for kept in self._kept]
                    if any(changed):
                        self._note()
            finally:
                for kept in reversed(self._kept):
                    kept.end(self._hurry)
                for kept in self._kept:
                    kept.close()
                self._note()
        return 0

    def stop(self) -> None:
        """Stop the children and return from `run`; asked twice, without patience."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Take the signals that ask to stop; SIGHUP only where nohup has not switched it off."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def asked(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        wanted = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        before = {number: signal.signal(number, asked) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _say(self, line: str) -> None:
        """Tell whoever listens; somebody who has closed the terminal must not stop the children."""
        with contextlib.suppress(OSError, ValueError):
            self._tell(line)

    def _look_after(self, kept: _Kept) -> bool:
        """Start what is due and notice what has ended; True if anything has changed."""
        name = kept.child.name
        if not kept.running:
            if time.monotonic() < kept.due:
                return False
            try:
                kept.start()
            except OSError as error:
                wait = kept.put_off(127)
                self._say(f"{name} cannot be started: {error.strerror}; trying again in {wait:g} s")
            return True
        code = kept.ended()
        if code is None:
            return False
        wait = kept.put_off(code)
        self._say(f"{name} ended ({how_it_ended(code)}); starting it again in {wait:g} s")
        if kept.delays.stuck_since_now:
            time.sleep(_TICK)  # let its last lines come
            lines = "".join(f"\n    {line}" for line in kept.recent)
            self._say(
                f"{name} does not start: it ended {FALSE_STARTS} times in a row. It is tried again every "
                f"{LONGEST_DELAY:g} s; the last lines of {kept.log.path}:{lines}"
            )
        return True

    def _note(self) -> None:
        """Write what runs, for whoever asks for the status; a full disk must not stop us."""
        facts = {kept.child.name: kept.facts() for kept in self._kept}
        with contextlib.suppress(OSError):
            write_atomic(self.logs / "processes.json", json.dumps(facts, indent=1).encode())


def how_it_ended(code: int) -> str:
    """Say an exit code as ``subprocess`` returns it.

    >>> how_it_ended(-9), how_it_ended(2)
    ('killed by SIGKILL', 'exit code 2')
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def flower_environment(home: Path) -> dict[str, str]:
    """Return what every Flower process of ours gets: a home of its own, nothing sent anywhere else."""
    beside = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONUNBUFFERED": "1",
        # Flower starts flwr-clientapp and flwr-serverapp by name.
        "PATH": os.pathsep.join(filter(None, (beside, os.environ.get("PATH")))),
    }


def command(name: str) -> str:
    """Return the path of a console script of this installation, such as ``flower-superexec``."""
    return str(Path(sys.executable).parent / name)


class Delays:
    """How long to wait before a child is started again."""

    def __init__(self) -> None:
        self.stuck = self.stuck_since_now = False
        self._next = FIRST_DELAY
        self._deaths: deque[tuple[float, int]] = deque(maxlen=FALSE_STARTS)

    def after(self, code: int, lived: float, now: float) -> float:
        """Return the seconds to wait after an end with ``code``, having lived ``lived`` seconds."""
        if lived >= STEADY_AFTER:
            self.stuck = False
            self._next = FIRST_DELAY
            self._deaths.clear()
        self._deaths.append((now, code))
        first, alike = self._deaths[0][0], {c for _, c in self._deaths} == {code}
        stuck = len(self._deaths) == FALSE_STARTS and alike and now - first <= STEADY_AFTER
        self.stuck_since_now = stuck and not self.stuck
        self.stuck = self.stuck or stuck
        wait, self._next = self._next, min(2 * self._next, LONGEST_DELAY)
        return LONGEST_DELAY if self.stuck else wait


class _Kept:
    """One child: its process, its log, and when it is due."""

    def __init__(self, child: Child, log: RotatingLog, listen: Listen | None) -> None:
        self.child = child
        self.log = log
        self.due = 0.0
        self.delays = Delays()
        self.recent: deque[str] = deque(maxlen=10)
        self._listen = listen
        self._process: subprocess.Popen[bytes] | None = None
        self._output: int | None = None
        self._reader: threading.Thread | None = None
        self._started = 0.0
        self._since: float | None = None
        self._starts = 0
        self._last_exit: int | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        ours = os.getpid()

        def die_with_us() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != ours:  # we died between the fork and the line above
                os._exit(1)

        self._started, self._since = time.monotonic(), time.time()
        # A session of its own: Ctrl-C reaches us alone, and what the child started can be ended with it.
        self._process = subprocess.Popen(
            self.child.command,
            stdin=subprocess.DEVNULL,
            stdout=self._written(),
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.child.environment},
            start_new_session=True,
            preexec_fn=die_with_us,
        )
        self._starts += 1

    def ended(self) -> int | None:
        """Return the exit code once the child is dead, and all it has started with it."""
        process = self._process
        if process is None:
            return self._last_exit
        try:
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
        except ChildProcessError:
            pass
        _kill_group(process.pid)  # before it is reaped, so that the number is still its own
        self._last_exit, self._since = process.wait(), time.time()
        self._process = None
        return self._last_exit

    def put_off(self, code: int) -> float:
        """Return the seconds until the next start."""
        now = time.monotonic()
        if code in self.child.wait_after:
            wait, self.delays.stuck_since_now = self.child.wait_after[code], False
        else:
            wait = self.delays.after(code, now - self._started, now)
        self.due = now + wait
        return wait

    def end(self, hurry: threading.Event) -> None:
        """Ask the child to stop, and end it where it does not."""
        if self._process is None:
            return
        self._process.terminate()
        deadline = time.monotonic() + PATIENCE
        while self.ended() is None:
            if time.monotonic() >= deadline or hurry.is_set():
                _kill_group(self._process.pid)
                deadline = time.monotonic() + PATIENCE
            time.sleep(_TICK / 5)

    def close(self) -> None:
        if self._output is not None and self._reader is not None:
            os.close(self._output)
            self._reader.join(timeout=2)
        self.log.close()

    def facts(self) -> dict[str, object]:
        return {
            "pid": None if self._process is None else self._process.pid,
            "restarts": max(0, self._starts - 1),
            "since": self._since,
            "last_exit": self._last_exit,
        }

    def _written(self) -> int:
        """Return the end of a pipe that every start of the child writes to."""
        if self._output is None:
            read, self._output = os.pipe()
            self._reader = threading.Thread(target=self._read, args=(read,), daemon=True)
            self._reader.start()
        return self._output

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as stream:
            for line in iter(lambda: stream.readline(1 << 16), b""):
                self.log.write(line)
                text = line.decode(errors="replace").rstrip()
                self.recent.append(text[:500])
                if self._listen is not None:
                    # Whatever is wrong with the listener, the child must not wait for us to read.
                    with contextlib.suppress(Exception):
                        self._listen(self.child.name, text)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
