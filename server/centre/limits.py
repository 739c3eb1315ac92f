"""Bodies with a cap, an idle limit and a total time; space on the centre's disk."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.centre.credentials import DeniedError, Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class BodyLimits:
    """How slowly a body may come."""

    idle_seconds: float = 20.0
    """Between two pieces."""
    total_seconds: float = 180.0
    """From head to end; 5 MB then need 28 kB/s."""
    at_once: int = 256_000_000
    """Bytes of all bodies held in memory together."""
    per_site: int = 16
    """Requests of one site at the same time; Flower's client makes about five."""


class GoneError(Exception):
    """The caller hung up."""


class Bodies:
    """Reads bodies, and knows how much of them is in memory."""

    def __init__(self, limits: BodyLimits | None = None) -> None:
        self.limits = limits or BodyLimits()
        self._held = 0
        self._open: dict[str, int] = {}

    @contextmanager
    def of(self, site: str) -> Iterator[None]:
        """Count a request of a site.

        Raises:
            DeniedError: 503 if the site has too many at once.
        """
        if self._open.get(site, 0) >= self.limits.per_site:
            raise DeniedError(503, "too many requests at once", site=site, retry_after=2)
        self._open[site] = self._open.get(site, 0) + 1
        try:
            yield
        finally:
            self._open[site] -= 1

    @contextmanager
    def room(self, site: str) -> Iterator[_Room]:
        """Give back, at the end, the memory that a body took."""
        room = _Room(self, site)
        try:
            yield room
        finally:
            self._held -= room.taken

    async def read(self, room: _Room, receive: Receive, cap: int) -> bytes:
        """Read a whole body.

        Raises:
            DeniedError: 413 beyond the cap, 503 if it comes too slowly or memory is short.
            GoneError: if the caller hangs up before the end.
        """
        body = bytearray()
        ends = time.monotonic() + self.limits.total_seconds
        while True:
            wait = min(self.limits.idle_seconds, ends - time.monotonic())
            try:
                async with asyncio.timeout(max(wait, 0)):
                    message = await receive()
            except TimeoutError:
                # Flower's client gives an answer up for 408, and sends it again for 503.
                raise DeniedError(503, "the body comes too slowly", site=room.site, retry_after=2) from None
            if message["type"] != "http.request":
                raise GoneError
            piece = message.get("body", b"")
            if len(body) + len(piece) > cap:
                raise DeniedError(413, f"a body above {cap} bytes", site=room.site)
            room.take(len(piece))
            body += piece
            if not message.get("more_body", False):
                return bytes(body)


class _Room:
    def __init__(self, bodies: Bodies, site: str) -> None:
        self.bodies, self.site, self.taken = bodies, site, 0

    def take(self, size: int) -> None:
        if self.bodies._held + size > self.bodies.limits.at_once:
            raise DeniedError(503, "the centre holds as much as it can", site=self.site, retry_after=5)
        self.bodies._held += size
        self.taken += size


def declared_length(headers: Headers) -> int | None:
    """Return content-length; None where the body is chunked.

    Raises:
        DeniedError: 400 if it is not a number; 411 if there is neither.
    """
    lengths = [value for name, value in headers if name == b"content-length"]
    if not lengths:
        if any(name == b"transfer-encoding" for name, _ in headers):
            return None
        raise DeniedError(411, "no length")
    if len(set(lengths)) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 15:
        raise DeniedError(400, "a length that is no number")
    return int(lengths[0])


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body already read, then what follows."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


@dataclass
class Disk:
    """Free space where the centre's database lies."""

    folder: Path
    least: int
    """Bytes that must be free."""

    def free(self) -> int:
        """Return the bytes that this process may still write."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def short(self) -> bool:
        """Whether there is less than the centre wants."""
        return self.free() < self.least
