"""The guard of the public listener: Flower's Fleet routes, one site each, nothing else.

Order of things for a request: the route is one a site needs; the headers are signed by the key of an
admitted site; the disk has room; then the body is read, within its cap and time; what it says is
bound to the site that signed; only then Flower sees it. Whatever is not listed is refused.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sqlalchemy.exc import SQLAlchemyError

from server.centre.answers import LATE, Reply, health, hold, refusal
from server.centre.binding import Binding
from server.centre.credentials import Caller, DeniedError, NodeCredentials
from server.centre.doors import Client, Doors
from server.centre.events import Events, Kind
from server.centre.faults import is_disk_full
from server.centre.limits import App, Bodies, Disk, GoneError, Receive, Scope, Send, declared_length, replay
from server.centre.pulse import Pulse
from server.centre.routes import HEALTH, SITE_ROUTES, SiteRoute

access = logging.getLogger("fedcxr.centre.access")

UNKNOWN_LINES = 30
"""Log lines a minute about callers who are no site."""


class Guard:
    """ASGI app around Flower's, for the listener that the world can reach."""

    def __init__(
        self,
        app: App,
        *,
        credentials: NodeCredentials,
        binding: Binding,
        bodies: Bodies,
        disk: Disk,
        doors: Doors,
        events: Events,
        pulse: Pulse,
        max_body: int,
        state: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.app = app
        self.credentials = credentials
        self.binding = binding
        self.bodies = bodies
        self.disk = disk
        self.doors = doors
        self.events = events
        self.pulse = pulse
        self.max_body = max_body
        self.state = state
        self.heard: dict[str, float] = {}
        """Site -> when it last called, seconds since 1970; whoever keeps it empties it."""
        self._unknown = (0, 0)
        self._called: dict[str, float] = {}
        self._began = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        self.pulse.beat()
        client: Client | None = scope.get("client")
        method, path = scope["method"], scope["path"]
        if path == HEALTH and method in ("GET", "HEAD"):
            await health(method).send(send)
            self.doors.dismiss(client)
            return
        caller: Caller | None = None
        route = SITE_ROUTES.get(path) if method == "POST" else None
        size, began = 0, False
        try:
            if route is None:
                raise DeniedError(404, "no such route")
            caller = self.credentials.check(scope["headers"])
            self.doors.proven(client, caller.site)
            self.doors.begin(client)
            began = True
            reply, size = await self._safely(route, caller, scope, receive)
        except DeniedError as refused:
            reply = refusal(
                refused.status,
                # The body of a refused request is not read: the connection cannot go on.
                close=True,
                retry_after=refused.retry_after,
                detail=LATE if refused.kind == "late" else "",
            )
            self._note_refusal(refused, caller, route)
            self.doors.dismiss(client)
        except GoneError:
            self._line(caller, route, 499, size)
            return
        finally:
            if began:
                self.doors.end(client)
        self._line(caller, route, reply.status, size)
        await reply.send(send)

    async def _safely(
        self, route: SiteRoute, caller: Caller, scope: Scope, receive: Receive
    ) -> tuple[Reply, int]:
        """Serve, and turn a fault of our own tables into an answer without words."""
        try:
            return await self._serve(route, caller, scope, receive)
        except (sqlite3.Error, SQLAlchemyError, OSError) as error:
            if is_disk_full(getattr(error, "orig", None) or error):
                raise self._disk_full(caller.site) from None
            access.error("a fault in the gateway: %s", type(error).__name__)
            raise DeniedError(503, "a fault in a table", site=caller.site, retry_after=5) from None

    async def _serve(
        self, route: SiteRoute, caller: Caller, scope: Scope, receive: Receive
    ) -> tuple[Reply, int]:
        site = caller.site
        self.heard[site] = time.time()
        cap = self.max_body if route.cap is None else route.cap
        if (declared_length(scope["headers"]) or 0) > cap:
            raise DeniedError(413, f"a body above {cap} bytes", site=site)
        content = [value for name, value in scope["headers"] if name == b"content-type"]
        if content != [PROTOBUF_MEDIA_TYPE.encode()]:
            raise DeniedError(415, "not a protobuf", site=site)
        if caller.node is None:
            raise DeniedError(503, "not registered yet", site=site, retry_after=1)
        if route.writes and self.disk.short():
            raise self._disk_full(site)
        with self.bodies.of(site), self.bodies.room(site) as room:
            body = await self.bodies.read(room, receive, cap)
            message = route.request()
            try:
                message.ParseFromString(body)
            except DecodeError:
                raise DeniedError(400, "not the protobuf of its route", site=site) from None
            silent = self._silence(route, site)
            bound = await asyncio.to_thread(self.binding.bind, route.path, message, caller, silent)
            # Revoked while it sent its body: refused all the same.
            if self.credentials.withdrawn(caller):
                raise DeniedError(401, "revoked meanwhile", site=site)
            if bound.instead is not None:
                return _protobuf(bound.instead), len(body)
            inner = {**scope, "state": self.state(), "query_string": b""}
            held = await hold(self.app, inner, replay(body, receive))
        reply = held.reply
        done = reply.status < 500 and (reply.status != 200 or self.binding.stored(route.path, reply.body))
        if held.disk_full and not done:
            raise self._disk_full(site)
        if held.busy and not done:
            raise DeniedError(503, "the database is busy", site=site, retry_after=2)
        if reply.status == 200:
            reply.body = await asyncio.to_thread(self.binding.conclude, bound, reply.body)
        return reply, len(body)

    def _silence(self, route: SiteRoute, site: str) -> float:
        """Return the seconds since a site's node last called; activations are tries, not signs of life."""
        now = time.monotonic()
        silent = now - self._called.get(site, self._began)
        if not route.path.endswith("/activate-node"):
            self._called[site] = now
        return silent

    def _disk_full(self, site: str) -> DeniedError:
        free = self.disk.free() // 1_000_000
        words = f"the centre's disk is nearly full: {free} MB free, sites are asked to wait"
        self.events.add("disk-full", words)
        return DeniedError(503, "disk", site=site, kind="disk-full", retry_after=15)

    def _note_refusal(self, refused: DeniedError, caller: Caller | None, route: SiteRoute | None) -> None:
        site = refused.site or (caller.site if caller else "")
        if not site or refused.kind == "disk-full":
            return
        name = route.path.rpartition("/")[2] if route else ""
        if refused.kind == "late":
            return  # binding has written it, with its run and round
        words = f"{site}: {name} refused with {refused.status}: {refused.why}"
        kind: Kind = "clock" if refused.kind == "clock" else "refused"
        self.events.add(kind, words, site=site, route=name)

    def _line(self, caller: Caller | None, route: SiteRoute | None, status: int, size: int) -> None:
        """Write the access line: site, route, status, bytes; nothing a caller chose."""
        if caller is None:
            minute = int(time.time() // 60)
            lines = self._unknown[1] + 1 if self._unknown[0] == minute else 1
            self._unknown = (minute, lines)
            if lines > UNKNOWN_LINES:
                return
        elif route is not None and route.routine and status == 200:
            return
        name = route.path if route else "-"
        access.info("%s %s %d %d", caller.site if caller else "-", name, status, size)


def _protobuf(body: bytes) -> Reply:
    return Reply(200, [(b"content-type", PROTOBUF_MEDIA_TYPE.encode())], body)
