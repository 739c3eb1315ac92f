"""A monitor as a process of its own, for the benchmarks of its page: its address, memory and work."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psutil

_SAYS = re.compile(r"Monitor: (https?://[^/\s]+)")
_LOOK = 0.05
"""Seconds between two looks at its memory."""
_START = 60.0
"""Seconds it may take to start."""


class MonitorProcess:
    """``fedcxr-server monitor --runs FOLDER`` on a free port of loopback, until the ``with`` ends."""

    def __init__(self, folder: Path) -> None:
        self._command = [sys.executable, "-m", "server.cli", "monitor"]
        self._command += ["--runs", str(folder), "--listen", "127.0.0.1:0"]
        self.address = ""
        self.peak = 0
        """Most bytes of memory it had, as far as we looked."""
        self._over = threading.Event()

    def __enter__(self) -> MonitorProcess:
        """Start it, and wait until it has said where it serves.

        Raises:
            RuntimeError: if it did not.
        """
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        late = threading.Timer(_START, self._process.kill)
        late.start()
        assert self._process.stdout is not None  # noqa: S101
        for line in self._process.stdout:
            if found := _SAYS.search(line):
                self.address = found[1]
                break
        late.cancel()
        if not self.address:
            self._process.wait()
            raise RuntimeError(f"the monitor did not start: {' '.join(self._command)}")
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()
        threading.Thread(target=self._process.stdout.read, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End it as a person would."""
        self._over.set()
        self._looking.join()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def work(self) -> float:
        """Return the processor seconds it has used, to a hundredth; it must still run."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def _look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            while not self._over.wait(_LOOK):
                self.peak = max(self.peak, process.memory_info().rss)


@contextmanager
def paced(seconds: float) -> Iterator[None]:
    """Let a block take at least so long."""
    ends = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, ends - time.monotonic()))
