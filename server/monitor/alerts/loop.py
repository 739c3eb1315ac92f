"""AlertLoop: looks at the runs that live every few seconds and has told what there is to tell."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import FedcxrError
from server.monitor.alerts.alert import Alert, Notice
from server.monitor.alerts.book import Book
from server.monitor.alerts.channels import Channel, by_name, make_channels
from server.monitor.alerts.courier import Courier
from server.monitor.alerts.messages import Sender, line
from server.monitor.alerts.rules import check
from server.monitor.alerts.run_facts import LIVE, Gatherer
from server.monitor.alerts.settings import SEVERITIES, AlertSettings, alert_settings

if TYPE_CHECKING:
    from server.facts.records import Standing
    from server.facts.runs import Run, Runs

BOOK = "alerts.json"
"""The book's file in the centre's folder."""
IDLE_INTERVAL = 60.0
"""Seconds between two looks at a run that nobody works on and whose ledger does not change."""

log = logging.getLogger("fedcxr.alerts")


@dataclass
class _Dormant:
    """A run that needs no look: as its ledger was, and when it was looked at."""

    stamp: object
    looked: float


class AlertLoop:
    """Rules, book and couriers at work; `start` and `stop` are called once each."""

    def __init__(
        self,
        runs: Runs,
        settings: AlertSettings,
        book: Book,
        channels: Sequence[Channel],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._runs, self._settings, self._book, self._clock = runs, settings, book, clock
        self._channels = by_name(channels)
        self._couriers = [Courier(channel, book, clock) for channel in channels]
        self._gatherer = Gatherer()
        self._dormant: dict[str, _Dormant] = {}
        self._faults: set[str] = set()
        self._began = clock()
        self._at_work = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="alerts", daemon=True)

    def start(self) -> None:
        """Begin to look, and deliver what an earlier monitor could not.

        While another monitor tells the alerts of the same centre this one is quiet, and takes over
        when that one ends.
        """
        self._thread.start()

    def stop(self) -> None:
        """End; the book keeps what is open and what is not delivered."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        if self._at_work:
            for courier in self._couriers:
                courier.stop()
            self._book.close()

    def open(self) -> list[Alert]:
        """Return the alerts that hold now, by run, rule and site."""
        return self._book.open()

    def _follow(self) -> None:
        told = False
        while not self._stop.is_set() and not self._book.hold():
            if not told:
                log.info("another monitor tells the alerts; this one takes over when it ends")
            told = True
            self._stop.wait(self._settings.every)
        if self._stop.is_set():
            return
        self._at_work = True
        self._book.keep_channels(set(self._channels))
        for courier in self._couriers:
            courier.start()
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:
                log.exception("looking for alerts failed; it is tried again")
            self._stop.wait(self._settings.every)

    def look(self) -> list[Notice]:
        """Look once at every run that is due; returns what was told."""
        now, told = self._clock(), []
        runs = {run.key: run for run in self._runs.list()}
        self._book.keep_runs({*runs})
        self._gatherer.forget({*runs})
        self._dormant = {key: dormant for key, dormant in self._dormant.items() if key in runs}
        for key, run in runs.items():
            try:
                told += self._look_at(run, now)
                self._faults.discard(key)
            except (FedcxrError, OSError) as error:
                if key not in self._faults:
                    self._faults.add(key)
                    log.warning("alerts cannot look at run %s: %s", key, type(error).__name__)
        for notice in told:
            log.info("%s (%s)", line(notice), notice.alert.severity)
            rank = SEVERITIES.index(notice.alert.severity)
            wanted = [n for n, c in self._channels.items() if SEVERITIES.index(c.least) <= rank]
            self._book.post(notice, wanted)
        self._book.save()
        for courier in self._couriers if told else ():
            courier.wake()
        return told

    def _look_at(self, run: Run, now: float) -> list[Notice]:
        stamp = _stamp(run.folder)
        dormant = self._dormant.get(run.key)
        if dormant is not None and dormant.stamp == stamp and now - dormant.looked < IDLE_INTERVAL:
            return []
        from server.facts.standing import standing

        state = standing(run, now)
        if state.state in LIVE:
            self._book.watch(run.key)
            self._dormant.pop(run.key, None)
        elif not self._wanted(run, state):
            self._dormant[run.key] = _Dormant(stamp, now)
            return []
        over = state.state in ("finished", "failed", "stopped")
        alerts = check(self._gatherer.gather(run, state, now), self._settings, now)
        notices = self._book.update(run.key, alerts, now, over)
        if over:
            self._book.watch(run.key, False)
        return notices

    def _wanted(self, run: Run, state: Standing) -> bool:
        """Whether a run that nobody works on is still to be told of: it was seen alive, or ended just now."""
        if self._book.watches(run.key) or self._book.holds_open(run.key):
            return True
        if state.state == "idle" or any(alert.run == run.key for alert in self._book.open()):
            return False
        newest = run.view().events(limit=1, newest_first=True)
        return bool(newest) and newest[0].time >= self._began


def make_loop(
    runs: Runs, table: Mapping[str, Any], folder: Path | None, centre: str = "", source: str = "centre.toml"
) -> AlertLoop | None:
    """Return the loop that an ``[alerts]`` table asks for; None if it names nobody to tell.

    ``folder``: the centre's, where the book lies and relative file names are looked for; None: the
    book is not kept, and relative names are looked for in the working folder.

    Raises:
        ConfigError: if the table, or a file it names, is not as it should be.
    """
    settings = alert_settings(table, source)
    channels = make_channels(settings, Sender(centre, settings.page), folder or Path())
    if not channels:
        log.warning("%s: nobody is told of alerts: [alerts] names neither a webhook nor an email", source)
        return None
    path = folder / BOOK if folder is not None else None
    return AlertLoop(runs, settings, Book(path, settings.settle, settings.remind * 3600), channels)


def _stamp(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return what changes with every commit: time and size of the ledger and of its log."""
    found = []
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        try:
            facts = (folder / name).stat()
            found.append((facts.st_mtime_ns, facts.st_size))
        except FileNotFoundError:
            found.append((0, 0))
    return tuple(found)
