"""A run at the centre: its folder, Flower's numbers of it, and how far it is."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.config import RunConfig
from common.errors import CheckpointError, ConfigError, RunError, closest
from common.files import write_atomic
from common.overrides import read_toml
from server.centre.folder import CentreFolder
from server.facts.view import LedgerView
from server.ledger import Event, Ledger

Outcome = Literal["", "finished", "failed", "stopped"]

_NUMBERS = "flower.json"
_LOCK = ".lock"
_LOOKED_AT = 0.2
"""Seconds to try at least: whoever looks whether somebody works here holds the lock for a moment."""
_OUTCOMES = {"finished": "finished", "failed": "failed", "stopped": "stopped"}
_AGAIN = {"rolled-back", "submitted"}
"""Events after which an earlier outcome no longer holds."""


@dataclass(frozen=True)
class RunFolder:
    """One folder under ``runs/``."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def ledger(self) -> Path:
        """The run's ledger; it may not be there yet."""
        return self.path / "ledger.sqlite"

    def flower_runs(self) -> list[int]:
        """Return Flower's numbers of this run, one for every time it was submitted."""
        try:
            return [int(number) for number in json.loads((self.path / _NUMBERS).read_text())["runs"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{self.name}/{_NUMBERS} cannot be read", fix="restore it") from None

    def add_flower_run(self, number: int) -> None:
        """Note that Flower now knows this run by another number."""
        runs = [*map(str, self.flower_runs()), str(number)]
        write_atomic(self.path / _NUMBERS, json.dumps({"runs": runs}).encode())

    def config(self) -> RunConfig:
        """Return the run's settings.

        Raises:
            CheckpointError: if the folder holds no plan.
        """
        try:
            return RunConfig.from_flat(read_toml(self.path / "plan.toml")["config"])
        except (ConfigError, KeyError, TypeError):
            raise CheckpointError(f"{self.name}/plan.toml cannot be read", fix="restore it") from None

    def events(self, after: int = 0) -> list[Event]:
        """Return what has happened since an event."""
        with LedgerView(self.ledger) as view:
            return view.events(after)

    def tell(self, kind: str, text: str, *, round: int | None = None, **facts: Any) -> None:
        """Append an event."""
        ledger = Ledger(self.ledger)
        try:
            ledger.event(kind, text, round=round, **facts)
        finally:
            ledger.close()

    def outcome(self) -> Outcome:
        """Return how the run ended; empty while it has not, or goes on from where it was left."""
        found: Outcome = ""
        for event in self.events():
            if event.kind in _OUTCOMES:
                found = _OUTCOMES[event.kind]  # type: ignore[assignment]
            elif event.kind in _AGAIN:
                found = ""
        return found

    def served_by(self) -> int | None:
        """Return Flower's number of the newest submission whose ServerApp has begun to work."""
        with LedgerView(self.ledger) as view:
            number = view.get("flower_run")
        return None if number is None else int(number)

    @property
    def at_work(self) -> bool:
        """Whether a ServerApp works in this folder now; looking keeps nobody from beginning to."""
        try:
            descriptor = os.open(self.path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)

    @contextmanager
    def hold(self, patience: float) -> Iterator[None]:
        """Keep everybody else from working in this folder; the kernel lets go when we die.

        Raises:
            RunError: if somebody else still does after ``patience`` seconds.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + max(patience, _LOOKED_AT)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise RunError(
                            f"another process works on the run {self.name}",
                            fix="wait for it, or stop the run",
                        ) from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def run_folders(centre: CentreFolder) -> list[RunFolder]:
    """Return every run, the one submitted last at the end."""
    runs = [RunFolder(plan.parent) for plan in centre.runs.glob("*/plan.toml")]
    return sorted(runs, key=lambda run: (_submitted(run.path), run.name))


def _submitted(folder: Path) -> float:
    numbers = folder / _NUMBERS
    return (numbers if numbers.is_file() else folder / "plan.toml").stat().st_mtime


def find_run(centre: CentreFolder, name: str | None) -> RunFolder:
    """Return a run by name, or the latest.

    Raises:
        ConfigError: if there is none.
    """
    runs = run_folders(centre)
    if name is None:
        if not runs:
            raise ConfigError("this centre has no run yet", fix="fedcxr-server run PLAN")
        return runs[-1]
    known = {run.name: run for run in runs}
    if name not in known:
        found = ", ".join(known) or "no run yet"
        raise ConfigError(f"there is no run {name!r:.60}", found=found, fix=closest(name, known))
    return known[name]


def run_of_flower(centre: CentreFolder, number: int, patience: float = 30.0) -> RunFolder:
    """Return the run that Flower knows by a number; whoever submitted it may still be noting that.

    Raises:
        RunError: if no run has it after ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while True:
        for run in reversed(run_folders(centre)):
            if number in run.flower_runs():
                return run
        if time.monotonic() >= end:
            raise RunError(
                f"no run of this centre is Flower's run {number}", fix="submit it with fedcxr-server run"
            )
        time.sleep(0.2)
