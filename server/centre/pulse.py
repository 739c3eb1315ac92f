"""Gives the centre's own standstill back to tasks and nodes, so that nobody is taken for dead by it.

Flower ends a ServerApp, and answers for a site that is "unavailable", when a minute of heartbeats is
missing. If it was the SuperLink that did not listen (killed, stopped, its machine asleep), nobody
else is to blame: whoever was alive then gets a whole minute again.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from server.centre.links import Links

STILL_SECONDS = 10.0
"""A gap between two beats, of half a second each, that was a standstill."""

log = logging.getLogger("fedcxr.centre")


class Pulse:
    """Beats with every request and twice a second; used on the event loop only."""

    def __init__(self, links: Links, clock: Callable[[], float] = time.monotonic) -> None:
        self._links = links
        self._clock = clock
        self._last = clock()

    def start(self) -> None:
        """Begin: whatever the database calls alive was so when the last SuperLink ended."""
        self._last = self._clock()
        self._give_time()

    def beat(self) -> None:
        """Notice that no beat came for a while, before the request that comes first after it is served."""
        now = self._clock()
        gap, self._last = now - self._last, now
        if gap > STILL_SECONDS:
            log.warning("the centre stood still for %.0f s; sites and runs get that time back", gap)
            self._give_time()

    def _give_time(self) -> None:
        try:
            self._links.give_time()
        except (sqlite3.Error, SQLAlchemyError) as error:
            log.warning("tasks and nodes keep their old times: %s", type(error).__name__)
