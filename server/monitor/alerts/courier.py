"""Courier: delivers one channel's notices in a thread of its own, in order, until each has arrived."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from server.monitor.alerts.book import Book
from server.monitor.alerts.channels import Channel, Failure

FIRST_WAIT = 1.0
LONGEST_WAIT = 300.0
"""Seconds between two tries: doubled from the first to the longest."""
GIVE_UP = 24 * 3600.0
"""Seconds after which a notice is old news."""

log = logging.getLogger("fedcxr.alerts")


class Courier:
    """Takes from the book what its channel has to deliver; a receiver that hangs holds up nobody else."""

    def __init__(
        self,
        channel: Channel,
        book: Book,
        clock: Callable[[], float] = time.time,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        self._channel, self._book, self._clock, self._first = channel, book, clock, first_wait
        self._failures = 0
        self._stop, self._work = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._deliver, name=f"alerts-{channel.name}", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to deliver."""
        self._work.set()

    def stop(self, patience: float = 2.0) -> None:
        """End; what is not delivered stays in the book. Waits ``patience`` seconds for a try under way."""
        self._stop.set()
        self._work.set()
        if self._thread.is_alive():
            self._thread.join(patience)

    def _deliver(self) -> None:
        while not self._stop.is_set():
            self._work.clear()
            try:
                waiting = self._book.pending(self._channel.name)
                if not waiting:
                    self._work.wait()
                    continue
                notice = waiting[0]
                late = self._clock() - notice.time > GIVE_UP
                failure = Failure("a day has passed", final=True) if late else self._channel.send(notice)
                if failure is not None and not failure.final:
                    self._failed(failure)
                    continue
                if failure is not None:
                    self._say("gives up an alert", failure)
                else:
                    self._recovered()
                self._book.delivered(notice.id, self._channel.name)
            except Exception:
                log.exception("delivering alerts by %s failed; it is tried again", self._channel.name)
                self._stop.wait(LONGEST_WAIT)

    def _failed(self, failure: Failure) -> None:
        if not self._failures:
            self._say("does not get through; alerts are kept and tried again", failure)
        wait = min(self._first * 2 ** min(self._failures, 20), LONGEST_WAIT)
        self._failures += 1
        self._stop.wait(wait)

    def _recovered(self) -> None:
        if self._failures:
            log.info("%s to %s gets through again", self._channel.name, self._channel.where)
        self._failures = 0

    def _say(self, what: str, failure: Failure) -> None:
        log.warning("%s to %s %s: %s", self._channel.name, self._channel.where, what, failure.why)
