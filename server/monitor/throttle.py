"""Throttle: how often somebody may try a password.

Three things are counted, and none of them locks a user out of an address that did nothing wrong:

- tries for one user from one address, and tries from one address for anybody: after a few wrong ones
  each further try has to wait twice as long as the one before;
- tries for one user from all addresses where that user never logged in: so many at once, then a
  slow trickle (OWASP, "Slow down online guessing attacks with device cookies", with addresses);
- tries from all such addresses for anybody, likewise, which bounds what guessing can cost.

A try counts as wrong when it begins and is forgiven when it was right, so a thousand at once are a
thousand. A try that has to wait is not looked at and not counted. Every table has an upper size.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MOST_ENTRIES = 4096
"""Of every table; the one not used for longest goes first."""
FORGET_AFTER = 3600.0
"""Seconds without a wrong try after which an address or user there begins anew."""
LONGEST_DELAY = 300.0
FREE_FOR_PAIR = 4
"""Wrong tries of one user from one address without a delay."""
FREE_FOR_ADDRESS = 10
_BURST_FOR_USER, _PACE_FOR_USER = 40, 1 / 30
"""Wrong tries of one user from unknown addresses: at once, and per second afterwards (2,880 a day)."""
_BURST, _PACE = 60, 1.0
"""Wrong tries from unknown addresses for anybody."""


def origin(address: str) -> str:
    """Return what counts as one address: a single IPv4 one, and of IPv6 the 64 bits one network has.

    >>> origin("2001:db8::1:2:3:4"), origin("::ffff:10.0.0.7"), origin("10.0.0.7"), origin("")
    ('2001:db8::/64', '10.0.0.7', '10.0.0.7', '')
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


@dataclass
class _Wrong:
    count: int = 0
    last: float = 0.0
    until: float = 0.0


class _Delays:
    """Wrong tries by key; after some free ones the delay doubles with each."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.entries: OrderedDict[Hashable, _Wrong] = OrderedDict()

    def wait(self, key: Hashable, now: float) -> float:
        entry = self.entries.get(key)
        if entry is None:
            return 0.0
        if now - entry.last > FORGET_AFTER:
            del self.entries[key]
            return 0.0
        return max(0.0, entry.until - now)

    def count(self, key: Hashable, now: float) -> None:
        entry = self.entries.setdefault(key, _Wrong())
        self.entries.move_to_end(key)
        entry.count, entry.last = entry.count + 1, now
        if entry.count >= self.free:
            entry.until = now + min(2.0 ** min(entry.count - self.free, 30), LONGEST_DELAY)
        while len(self.entries) > MOST_ENTRIES:
            self.entries.popitem(last=False)

    def forgive(self, key: Hashable) -> None:
        """Take the last try back."""
        entry = self.entries.get(key)
        if entry is not None:
            entry.count, entry.until = entry.count - 1, 0.0
            if entry.count <= 0:
                del self.entries[key]


class _Buckets:
    """So many at once, then so many a second, by key."""

    def __init__(self, burst: int, pace: float) -> None:
        self.burst, self.pace = burst, pace
        self.entries: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def _left(self, key: Hashable, now: float) -> float:
        left, then = self.entries.get(key, (float(self.burst), now))
        return min(float(self.burst), left + (now - then) * self.pace)

    def wait(self, key: Hashable, now: float) -> float:
        return max(0.0, (1.0 - self._left(key, now)) / self.pace)

    def take(self, key: Hashable, now: float, number: float = 1.0) -> None:
        self.entries[key] = (min(float(self.burst), self._left(key, now) - number), now)
        self.entries.move_to_end(key)
        while len(self.entries) > MOST_ENTRIES:
            self.entries.popitem(last=False)


class Throttle:
    """Who has to wait before another try; used from one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pairs = _Delays(FREE_FOR_PAIR)
        self._addresses = _Delays(FREE_FOR_ADDRESS)
        self._users = _Buckets(_BURST_FOR_USER, _PACE_FOR_USER)
        self._all = _Buckets(_BURST, _PACE)
        self._at_home: OrderedDict[tuple[str, str], None] = OrderedDict()

    def knows(self, user: str, address: str) -> bool:
        """Whether this user has logged in from there before."""
        return (user, origin(address)) in self._at_home

    def wait(self, user: str, address: str) -> float:
        """Return the seconds until this user may be tried from there; a user nobody knows is ''."""
        now, pair = self._clock(), (user, origin(address))
        wait = self._pairs.wait(pair, now)
        if pair not in self._at_home:
            wait = max(
                wait,
                self._addresses.wait(pair[1], now),
                self._users.wait(user, now),
                self._all.wait("", now),
            )
        return wait

    def begin(self, user: str, address: str) -> None:
        """Count a try that is looked at; as wrong until `right` is called."""
        now, pair = self._clock(), (user, origin(address))
        self._pairs.count(pair, now)
        if pair not in self._at_home:
            self._addresses.count(pair[1], now)
            self._users.take(user, now)
            self._all.take("", now)

    def right(self, user: str, address: str) -> None:
        """Forgive the try that was begun, and those of this user from there before."""
        now, pair = self._clock(), (user, origin(address))
        self._pairs.entries.pop(pair, None)
        if pair not in self._at_home:
            # Not more than the one try: somebody with an account must not clear the way for guesses.
            self._addresses.forgive(pair[1])
            self._users.take(user, now, -1.0)
            self._all.take("", now, -1.0)
        self._at_home[pair] = None
        self._at_home.move_to_end(pair)
        while len(self._at_home) > MOST_ENTRIES:
            self._at_home.popitem(last=False)

    def entries(self) -> int:
        """Return how many things are remembered."""
        return sum(
            len(table) for table in (
                self._pairs.entries, self._addresses.entries, self._users.entries, self._all.entries,
                self._at_home,
            )
        )  # fmt: skip
