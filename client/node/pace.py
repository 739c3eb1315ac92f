"""How often a site asks its centre for work: often while a run is on, seldom while nothing happens."""

from __future__ import annotations

import time
from collections.abc import Callable

SHORTEST, LONGEST = 0.1, 3.0
"""Seconds between two requests, at least and at most."""
SHARE = 0.05
"""Share of the time since the last answer that the next instruction may wait for us."""
RESPITE = 4.0
"""Times as long as the centre took over a request until the next: a busy one is asked less."""


class Pace:
    """The time to wait before the centre is asked again.

    It grows with the time since something last happened. A site that waits for slower ones is late
    for the next round by a twentieth of that wait, which it has to spare; the slowest, which the round
    waits for, is asked again at once.

    >>> now = 0.0
    >>> pace = Pace(lambda: now)
    >>> pace.wait()
    0.1
    >>> now = 20.0
    >>> pace.wait(), pace.wait(took=0.5)
    (1.0, 2.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moved = clock()
        self._held = False

    def moved(self) -> None:
        """Note that an instruction has come or an answer has left."""
        self._moved = self._clock()

    def hold(self) -> None:
        """Wait the longest time next: the disk is full, or the centre does not take what it was given."""
        self._held = True

    def wait(self, took: float = 0.0) -> float:
        """Return the seconds until the next request; the last one ``took`` so long."""
        held, self._held = self._held, False
        if held:
            return LONGEST
        idle = self._clock() - self._moved
        return min(max(SHORTEST, SHARE * idle, RESPITE * took), LONGEST)
