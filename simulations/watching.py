"""``--monitor``: the monitor's page beside a simulation, as a process of its own that ends with it."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

from server.facts.runs import Runs
from server.ledger import Ledger

PATIENCE = 30.0
"""Seconds to wait for the monitor's address; then the run goes on without it."""
_ANNOUNCED = "Monitor: "
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Watching:
    """A monitor over the runs beside this one, on loopback, at a free port."""

    def __init__(self, folder: Path) -> None:
        """Start it; ``folder`` is the run's own, which need not be there yet."""
        self.root = folder.resolve().parent
        self.root.mkdir(parents=True, exist_ok=True)
        self._address = ""
        self._known = threading.Event()
        self._said: deque[str] = deque(maxlen=5)
        command = (sys.executable, "-P", "-m", "server.cli", "monitor")
        self._process = subprocess.Popen(
            (*command, "--runs", str(self.root), "--listen", "127.0.0.1:0"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run
            preexec_fn=_die_with_us,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def page_of(self, folder: Path) -> str:
        """Return the address of a run's page, made to exist before its first event; '' without a monitor."""
        Ledger(folder / "ledger.sqlite").close()
        if not self._known.wait(PATIENCE) or not self._address:
            return ""
        shown = {run.folder: run.key for run in Runs.of_folder(self.root).list()}
        key = shown.get(folder.resolve())
        return f"{self._address}runs/{key}" if key else self._address

    def why_not(self) -> str:
        """Return what the monitor said instead of an address."""
        return "; ".join(self._said) or "it did not answer in time"

    def close(self) -> None:
        """End the monitor."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        """Take in what it says, to the end, so that it never waits for us."""
        if self._process.stdout is None:
            return
        with self._process.stdout as lines, contextlib.suppress(ValueError):
            for line in lines:
                if line.startswith(_ANNOUNCED):
                    self._address = line.removeprefix(_ANNOUNCED).strip()
                    self._known.set()
                else:
                    self._said.append(" ".join(line.split()))
        self._known.set()


def _die_with_us() -> None:
    """Let the kernel end the monitor should this process be killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
