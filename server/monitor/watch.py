"""Watch: follow the ledgers' revisions in one thread, and tell whoever looks.

Fifty watchers cost what one costs: the thread looks at a ledger's file twice a second, asks the ledger
only when the file has changed lately, and passes one message a poll to the event loop. A site that falls
silent changes no ledger, so the contacts of the runs somebody looks at are followed too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.errors import FedcxrError

if TYPE_CHECKING:
    from server.facts.runs import Run, Runs

INTERVAL = 0.5
"""Seconds between two polls of a run that changes or is looked at."""
IDLE_INTERVAL = 5.0
"""Seconds between two polls of a run that does neither."""
SHARE = 0.01
"""Of a core, for the monitor while it is watched; beyond it streams rest, up to `most_rest`."""
LEAST_REST = 1.0
"""Seconds between two events of one stream, at least."""
SETTLED = 30.0
"""Seconds after which a commit that changed a ledger's files can be read, however slow the disk.

A commit changes the files first, waits for the disk, and only then can be read; nothing changes with that.
"""
LIVE_FOR = 120.0
"""Seconds after its last change for which a run is polled often."""

log = logging.getLogger("fedcxr.monitor")

Changes = Mapping[str, int]
"""Run -> its revision."""


@dataclass(eq=False)
class Subscription:
    """What one watcher has not been told yet; used on the event loop alone."""

    run: str
    """The run looked at; empty: all of them."""
    loop: asyncio.AbstractEventLoop
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    news: dict[str, int] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the stream is to end."""

    @property
    def over(self) -> bool:
        """Whether the stream is to end."""
        return self.ended.is_set()

    def end(self) -> None:
        """End it, whatever it waits for."""
        self.ended.set()
        self.changed.set()

    def take(self) -> dict[str, int]:
        """Return the news since the last call."""
        news, self.news = self.news, {}
        self.changed.clear()
        return news


@dataclass
class _Followed:
    """What is known of one run."""

    changed: float
    """When it changed last, or was found; monotonic."""
    polled: float = float("-inf")
    stamp: object = None
    stirred: float = float("-inf")
    """When its files changed last; monotonic."""
    revision: int = 0
    contacts: object = None


def most_rest(watchers: int) -> float:
    """Return the seconds between two events of one stream, at most, whatever they cost.

    >>> [most_rest(watchers) for watchers in (1, 20, 50, 200)]
    [2.0, 12.0, 30.0, 30.0]
    """
    return min(max(0.6 * watchers, 2.0), 30.0)


class Rest:
    """When all streams may speak next: so late that the monitor takes about a hundredth of a core.

    They take turns together, so that watchers ask for the same revision and what they ask for is computed
    once. What an answer costs differs between machines, runs and numbers of watchers by more than a
    hundred times; so it is measured, as the processor time of this process since the turn began.
    """

    def __init__(
        self,
        watchers: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self._watchers, self._clock, self._processor = watchers, clock, processor
        self._began, self._spent = clock(), processor()
        self.turn = 0
        """Counts the turns; a stream keeps the one in which it spoke last."""

    def left(self, turn: int) -> float:
        """Return the seconds until a stream that spoke in ``turn`` may speak; at once, if it never did (-1).

        Whoever asks first after a rest begins the next turn for all.
        """
        now, spent = self._clock(), self._processor()
        rest = min(max((spent - self._spent) / SHARE, LEAST_REST), most_rest(self._watchers()))
        if now >= self._began + rest:
            self._began, self._spent = now, spent
            self.turn += 1
        return 0.0 if turn < self.turn else self._began + rest - now


class Watch:
    """Follows runs for subscribers on an event loop and for listeners of other kinds."""

    def __init__(
        self, runs: Runs, late: float, silent: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._runs, self._limits, self._clock = runs, (late, silent), clock
        self.rest = Rest(self.watchers)
        """When streams may speak next; used on the event loop alone."""
        self._known: dict[str, _Followed] = {}
        self._subscribers: set[Subscription] = set()
        self._listeners: list[Callable[[Changes], None]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._faults: set[str] = set()

    def start(self) -> None:
        """Begin to follow."""
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        self._thread.start()

    def let_go(self) -> None:
        """End every stream, and let the thread end; returns at once."""
        self._stop.set()
        with self._lock:
            subscribers = list(self._subscribers)
        for subscriber in subscribers:
            _call(subscriber.loop, subscriber.end)

    def stop(self) -> None:
        """End every stream and the thread."""
        self.let_go()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    def revision(self, run: str) -> int:
        """Return the revision last seen; 0 for a run never looked at."""
        return self._known[run].revision if run in self._known else 0

    def subscribe(self, run: str = "") -> Subscription:
        """Begin to collect news of a run, or of all; call it on the event loop."""
        subscription = Subscription(run, asyncio.get_running_loop())
        if self._stop.is_set():
            subscription.end()
        with self._lock:
            self._subscribers.add(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """End a subscription."""
        with self._lock:
            self._subscribers.discard(subscription)

    def watchers(self) -> int:
        """Return how many subscriptions there are."""
        return len(self._subscribers)

    def listen(self, listener: Callable[[Changes], None]) -> None:
        """Call ``listener`` on the watch's thread whenever something has changed."""
        self._listeners.append(listener)

    def _follow(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                if changes := self.poll():
                    self._tell(changes)
            except Exception:
                log.exception("following the runs failed; it is tried again")
                self._stop.wait(IDLE_INTERVAL)

    def poll(self) -> dict[str, int]:
        """Look at every run that is due; returns the runs that changed, with their revisions."""
        now = time.monotonic()
        with self._lock:
            looked_at = {subscription.run for subscription in self._subscribers}
        runs = {run.key: run for run in self._runs.list()}
        changes = dict.fromkeys(self._known.keys() - runs.keys(), 0)
        for key in changes:
            del self._known[key]
        for key, run in runs.items():
            new = key not in self._known
            known = self._known.setdefault(key, _Followed(changed=now))
            busy = key in looked_at or now - known.changed < LIVE_FOR
            if now - known.polled < (0.0 if busy else IDLE_INTERVAL):
                continue
            known.polled = now
            if self._has_changed(run, known, key in looked_at or "" in looked_at) or new:
                known.changed = now
                changes[key] = known.revision
        return changes

    def _has_changed(self, run: Run, known: _Followed, looked_at: bool) -> bool:
        before = (known.revision, known.contacts)
        try:
            stamp = stamp_of(run)
            if stamp != known.stamp:
                known.stirred = time.monotonic()
            if time.monotonic() < known.stirred + SETTLED:
                known.revision = run.view().revision()
            known.stamp = stamp
            if looked_at and not run.steady:
                known.contacts = self._contacts(run)
            self._faults.discard(run.key)
        except (FedcxrError, OSError) as error:
            if run.key not in self._faults:
                self._faults.add(run.key)
                log.warning("run %s cannot be read: %s", run.key, type(error).__name__)
        return before != (known.revision, known.contacts)

    def _contacts(self, run: Run) -> dict[str, int]:
        """Return site -> 0 (connected), 1 (late) or 2 (silent), as ages pass the limits."""
        now = self._clock()
        ages = {site: now - heard for site, heard in run.heard().items()}
        return {site: sum(age > limit for limit in self._limits) for site, age in ages.items()}

    def _tell(self, changes: Changes) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for loop in {subscriber.loop for subscriber in subscribers}:
            _call(loop, _deliver, [one for one in subscribers if one.loop is loop], changes)
        for listener in self._listeners:
            listener(changes)


def _deliver(subscribers: list[Subscription], changes: Changes) -> None:
    for subscriber in subscribers:
        news = changes if not subscriber.run else {k: v for k, v in changes.items() if k == subscriber.run}
        if news:
            subscriber.news.update(news)
            subscriber.changed.set()


def _call(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *arguments: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(what, *arguments)


def stamp_of(run: Run) -> tuple[tuple[int, int], ...]:
    """Return what changes with every commit: time and size of the ledger and of its log."""
    found = []
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        try:
            facts = (run.folder / name).stat()
            found.append((facts.st_mtime_ns, facts.st_size))
        except FileNotFoundError:
            found.append((0, 0))
    return tuple(found)
