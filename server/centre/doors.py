"""A listening socket that idle callers cannot fill.

A caller is a stranger until a request of its proves who it is. Strangers have a few seconds and are
limited in number; one too many pushes out the stranger who has stood there longest, so a site, which
proves itself within milliseconds, always gets in. The count begins at ``accept``: a connection that
never begins TLS is one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Client = tuple[str, int]
"""Address and port, as the ASGI scope has them."""


@dataclass(frozen=True)
class DoorLimits:
    """How many callers, and how long they may stand idle."""

    strangers: int = 512
    """Connections that have not proved who they are, from anywhere."""
    strangers_per_address: int = 128
    """Of those, from one address; sites behind one proxy share it for milliseconds only."""
    head_seconds: float = 10.0
    """For TCP, TLS and one proven request."""
    idle_seconds: float = 90.0
    """Between two requests of a caller who is known."""
    busy_seconds: float | None = 600.0
    """For one request and its answer; None for answers that are streams."""
    goodbye_seconds: float = 3.0
    """To read a refusal before the connection is cut."""


@dataclass
class _Caller:
    socket: socket.socket
    opened: float
    since: float
    transport: asyncio.Transport | None = None
    site: str = ""
    active: int = 0
    cut_at: float | None = None


@dataclass
class Doors:
    """Every connection of one listener."""

    limits: DoorLimits = field(default_factory=DoorLimits)
    clock: Callable[[], float] = time.monotonic
    turned_away: int = 0
    """Connections closed because they proved nothing."""
    _callers: dict[Client, _Caller] = field(default_factory=dict)
    _strangers: dict[Client, None] = field(default_factory=dict)

    def listen(self, host: str, port: int) -> socket.socket:
        """Return a bound socket whose callers are counted here.

        Raises:
            OSError: if the address cannot be bound.
        """
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = _Listener(family, kind, protocol)
        listener.doors = self
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def protocol(self) -> type[H11Protocol]:
        """Return uvicorn's HTTP protocol, telling these doors of its connections."""
        doors = self

        class DoorProtocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if self.client is not None and (caller := doors._callers.get(self.client)):
                    caller.transport = transport

        return DoorProtocol

    def count(self) -> tuple[int, int]:
        """Return how many connections there are, and how many of them are strangers'."""
        return len(self._callers), len(self._strangers)

    def proven(self, client: Client | None, site: str) -> None:
        """Note that a caller has proved who it is."""
        if client is not None and (caller := self._callers.get(client)):
            caller.site = site
            self._strangers.pop(client, None)

    def begin(self, client: Client | None) -> None:
        """Note the beginning of a known caller's request."""
        if client is not None and (caller := self._callers.get(client)):
            caller.active += 1
            caller.since = self.clock()

    def end(self, client: Client | None) -> None:
        """Note the end of a known caller's request."""
        if client is not None and (caller := self._callers.get(client)):
            caller.active -= 1
            caller.since = self.clock()

    def dismiss(self, client: Client | None) -> None:
        """Cut a connection soon, when its caller has had time to read the refusal."""
        if client is not None and (caller := self._callers.get(client)) and caller.cut_at is None:
            caller.cut_at = self.clock() + self.limits.goodbye_seconds

    def shut_out(self, site: str) -> int:
        """Cut every connection of a site at once; returns how many there were."""
        theirs = [caller for caller in self._callers.values() if site and caller.site == site]
        for caller in theirs:
            self._cut(caller)
        return len(theirs)

    def close(self) -> None:
        """Cut every connection: nobody can keep the centre from stopping."""
        for caller in list(self._callers.values()):
            self._cut(caller)

    def sweep(self) -> None:
        """Cut whoever has stood too long; called about twice a second."""
        now, limits = self.clock(), self.limits
        for client, caller in list(self._callers.items()):
            if caller.cut_at is not None:
                late = caller.cut_at < now
            elif client in self._strangers:
                late = caller.opened + limits.head_seconds < now
            elif caller.active <= 0:
                late = caller.since + limits.idle_seconds < now
            else:
                late = limits.busy_seconds is not None and caller.since + limits.busy_seconds < now
            if late:
                self._turn_away(client)

    def _arrived(self, connection: socket.socket, client: Client) -> None:
        now = self.clock()
        self._callers[client] = _Caller(connection, now, now)
        self._strangers[client] = None
        same = [other for other in self._strangers if other[0] == client[0]]
        if len(same) > self.limits.strangers_per_address:
            self._turn_away(same[0])
        elif len(self._strangers) > self.limits.strangers:
            self._turn_away(next(iter(self._strangers)))

    def _left(self, connection: socket.socket, client: Client) -> None:
        caller = self._callers.get(client)
        if caller is not None and caller.socket is connection:
            del self._callers[client]
            self._strangers.pop(client, None)

    def _turn_away(self, client: Client) -> None:
        if client in self._strangers:
            del self._strangers[client]
            self.turned_away += 1
        self._cut(self._callers[client])

    def _cut(self, caller: _Caller) -> None:
        caller.cut_at = self.clock() + self.limits.goodbye_seconds
        if caller.transport is not None:
            caller.transport.abort()
            return
        with contextlib.suppress(OSError):
            # No protocol has it yet: the event loop sees the end of the stream and closes it.
            caller.socket.shutdown(socket.SHUT_RDWR)


class _Listener(socket.socket):
    doors: Doors

    def accept(self) -> tuple[socket.socket, Any]:
        plain, address = super().accept()
        connection = _Connection(plain.family, plain.type, plain.proto, fileno=plain.detach())
        connection.doors, connection.client = self.doors, (str(address[0]), int(address[1]))
        self.doors._arrived(connection, connection.client)
        return connection, address


class _Connection(socket.socket):
    doors: Doors
    client: Client

    def close(self) -> None:
        self.doors._left(self, self.client)
        super().close()
