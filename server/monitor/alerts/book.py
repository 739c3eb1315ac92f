"""The book of alerts: which are open, what was told of them, and what is still to be delivered.

Each alert is told once when it opens and once when it is over, however often its rule flickers in
between; and again every ``remind`` hours. The book is one small JSON file, so a monitor that starts
again tells nothing twice and forgets nothing that was not delivered.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from common.files import write_atomic
from server.monitor.alerts.alert import Alert, Notice, Status

MOST_PENDING = 500
"""Notices that wait for a channel; beyond them the oldest is given up."""
SCHEMA = 1

log = logging.getLogger("fedcxr.alerts")


@dataclass(frozen=True)
class OpenAlert:
    """An alert that holds, or did a moment ago."""

    alert: Alert
    first: float
    """When its rule first held."""
    told: float | None = None
    """When it was last told; None: not yet, it must hold for a while first."""
    gone: float | None = None
    """Since when its rule has not held; None: it does."""


@dataclass(frozen=True)
class Pending:
    """A notice that some channels have not delivered."""

    notice: Notice
    channels: tuple[str, ...]


@dataclass
class _Pages:
    """What the file holds."""

    schema: int = SCHEMA
    open: dict[str, OpenAlert] = field(default_factory=dict)
    watched: list[str] = field(default_factory=list)
    """Runs that were seen alive and whose end is still to be told."""
    pending: list[Pending] = field(default_factory=list)


_PAGES: TypeAdapter[_Pages] = TypeAdapter(_Pages)


class Book:
    """Open alerts and undelivered notices; safe to use from several threads.

    ``settle`` seconds an alert must be gone before it is over; ``remind`` seconds lie between two
    reminders, 0: none. ``path`` None: the book is lost when the monitor ends.
    """

    def __init__(self, path: Path | None, settle: float = 60.0, remind: float = 0.0) -> None:
        self._path, self._settle, self._remind = path, settle, remind
        self._lock = threading.RLock()
        self._unwritable = False
        self._held: int | None = None
        self._pages = _Pages()
        self._written = b""
        if path is not None and path.exists():
            self._read(path)

    def hold(self) -> bool:
        """Become the one that keeps this book, as it is now; False while another monitor does.

        The kernel lets go of it when we die.
        """
        if self._path is None or self._held is not None:
            return True
        try:
            descriptor = os.open(
                self._path.with_name(f".{self._path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
        except OSError:
            return True  # where nothing can be written nobody else keeps a book either
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        with self._lock:
            self._held = descriptor
            if self._path.exists():
                self._read(self._path)
        return True

    def close(self) -> None:
        """Write the file and let another monitor keep it."""
        self.save()
        with self._lock:
            if self._held is not None:
                os.close(self._held)
                self._held = None

    # ------------------------------------------------------------------ what holds

    def update(self, run: str, alerts: Iterable[Alert], now: float, over: bool = False) -> list[Notice]:
        """Compare what holds of a run with what was open; returns what is to be told.

        ``over``: the run has ended, so what no longer holds is over at once.
        """
        holding = {alert.key: alert for alert in alerts}
        notices = []
        with self._lock:
            for key, alert in holding.items():
                notices += self._holds(key, alert, now)
            for key in [k for k, kept in self._pages.open.items() if kept.alert.run == run]:
                if key not in holding:
                    notices += self._does_not_hold(key, now, 0.0 if over else self._settle)
        return notices

    def _holds(self, key: str, alert: Alert, now: float) -> list[Notice]:
        kept = self._pages.open.get(key)
        if kept is None:
            kept = OpenAlert(alert, now)
        else:
            since = min(kept.alert.since, alert.since)
            kept = replace(kept, alert=replace(alert, since=since), gone=None, first=min(kept.first, now))
        status: Status | None = None
        if kept.told is None:
            status = "open" if now - kept.first >= alert.patience else None
        elif self._remind and not _is_end(alert) and now - kept.told >= self._remind:
            status = "reminder"
        if status is not None:
            kept = replace(kept, told=now)
        self._pages.open[key] = kept
        return [_notice(status, kept.alert, now)] if status else []

    def _does_not_hold(self, key: str, now: float, settle: float) -> list[Notice]:
        kept = self._pages.open[key]
        gone = now if kept.gone is None else min(kept.gone, now)
        if kept.told is not None and now - gone < settle:
            self._pages.open[key] = replace(kept, gone=gone)
            return []
        del self._pages.open[key]
        return [_notice("over", kept.alert, now)] if kept.told is not None else []

    def open(self) -> list[Alert]:
        """Return the alerts that were told and are not over, by run, rule and site."""
        with self._lock:
            return [kept.alert for _, kept in sorted(self._pages.open.items()) if kept.told is not None]

    def holds_open(self, run: str) -> bool:
        """Tell whether a run has an alert that only another look can close."""
        with self._lock:
            return any(k.alert.run == run and not _is_end(k.alert) for k in self._pages.open.values())

    # ------------------------------------------------------------------ which runs

    def watch(self, run: str, on: bool = True) -> None:
        """Note that a run was seen alive, or that its end has been told."""
        with self._lock:
            if on and run not in self._pages.watched:
                self._pages.watched.append(run)
            elif not on and run in self._pages.watched:
                self._pages.watched.remove(run)

    def watches(self, run: str) -> bool:
        """Tell whether a run was seen alive and its end not told."""
        return run in self._pages.watched

    def keep_runs(self, runs: set[str]) -> None:
        """Forget every run but these: others are no longer there."""
        with self._lock:
            self._pages.open = {k: kept for k, kept in self._pages.open.items() if kept.alert.run in runs}
            self._pages.watched = [run for run in self._pages.watched if run in runs]

    # ------------------------------------------------------------------ what is to be delivered

    def post(self, notice: Notice, channels: Iterable[str]) -> None:
        """Note that channels are to deliver a notice."""
        with self._lock:
            if wanted := tuple(channels):
                self._pages.pending.append(Pending(notice, wanted))
            if len(self._pages.pending) > MOST_PENDING:
                del self._pages.pending[0]
                log.warning("more than %d alerts wait for delivery; the oldest is given up", MOST_PENDING)

    def pending(self, channel: str) -> list[Notice]:
        """Return what a channel has still to deliver, the oldest first."""
        with self._lock:
            return [p.notice for p in self._pages.pending if channel in p.channels]

    def delivered(self, notice: str, channel: str) -> None:
        """Note that a channel has delivered a notice, or given it up."""
        with self._lock:
            left = [
                Pending(p.notice, tuple(c for c in p.channels if p.notice.id != notice or c != channel))
                for p in self._pages.pending
            ]
            self._pages.pending = [p for p in left if p.channels]
            self.save()

    def keep_channels(self, channels: set[str]) -> None:
        """Forget what waits for any other channel: nobody will deliver it."""
        with self._lock:
            left = [
                Pending(p.notice, tuple(c for c in p.channels if c in channels)) for p in self._pages.pending
            ]
            self._pages.pending = [p for p in left if p.channels]

    # ------------------------------------------------------------------ the file

    def save(self) -> None:
        """Write the file if anything has changed; where it cannot be written, say so once and go on."""
        with self._lock:
            if self._path is None:
                return
            data = json.dumps(_PAGES.dump_python(self._pages, mode="json"), indent=1).encode()
            if data == self._written:
                return
            try:
                write_atomic(self._path, data)
                self._written, self._unwritable = data, False
            except OSError as error:
                if not self._unwritable:
                    self._unwritable = True
                    log.warning("%s cannot be written: %s", self._path.name, error.strerror)

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            pages = _PAGES.validate_json(data)
            if pages.schema != SCHEMA:
                raise ValueError("another version")
        except (OSError, ValidationError, ValueError, RecursionError):
            log.warning("%s cannot be read; alerts that still hold are told again", path.name)
            return
        self._pages, self._written = pages, data


def _notice(status: Status, alert: Alert, now: float) -> Notice:
    return Notice(uuid.uuid4().hex, status, alert, now)


def _is_end(alert: Alert) -> bool:
    """Ends of a run stay open until it goes on, and nobody is reminded of them."""
    return alert.rule in ("run-finished", "run-failed", "run-stopped")
