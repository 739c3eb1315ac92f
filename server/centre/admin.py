"""The guard of the admin listener: Control for who holds the centre's token, Runtime for its processes.

It is on loopback, but so is every other user of the machine: Flower asks nobody on Control for a
credential, so this guard does. Fleet routes are not served here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from flwr.supercore.constant import SUPEREXEC_AUTH_SIGNATURE_HEADER, TASK_TOKEN_HEADER
from sqlalchemy.exc import SQLAlchemyError

from server.centre.answers import Reply, health, hold, refusal
from server.centre.credentials import DeniedError, Headers, bearer, same_token
from server.centre.doors import Client, Doors
from server.centre.events import Events
from server.centre.limits import App, Bodies, Disk, GoneError, Receive, Scope, Send, declared_length, replay
from server.centre.links import Links
from server.centre.pulse import Pulse
from server.centre.routes import ADMIN_CAP, HEALTH, RUNTIME_WRITES, SMALL, Need, admin_need

TASK_SECONDS = 10.0
"""How long a task's token need not be looked up again; Flower looks at it every time."""

access = logging.getLogger("fedcxr.centre.access")


class AdminGuard:
    """ASGI app around Flower's, for the centre's own commands and processes."""

    def __init__(
        self,
        app: App,
        *,
        token: str,
        links: Links,
        bodies: Bodies,
        disk: Disk,
        doors: Doors,
        events: Events,
        pulse: Pulse,
        state: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.app = app
        self.token = token
        self.links = links
        self.bodies = bodies
        self.disk = disk
        self.doors = doors
        self.events = events
        self.pulse = pulse
        self.state = state
        self._tasks: dict[str, float] = {}

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
        began = False
        try:
            need = admin_need(method, path)
            if need is None:
                raise DeniedError(404, "no such route")
            await self._check(need, scope["headers"])
            if need != "superexec":
                self.doors.proven(client, "")
            self.doors.begin(client)
            began = True
            reply = await self._serve(need, scope, receive, send)
            if reply is not None and need == "superexec" and reply.status == 200:
                self.doors.proven(client, "")
        except DeniedError as refused:
            reply = refusal(refused.status, close=True, retry_after=refused.retry_after)
            self.doors.dismiss(client)
        except GoneError:
            return
        finally:
            if began:
                self.doors.end(client)
        if reply is not None:
            if reply.status not in (200, 404):
                access.info("admin %s %d", path if reply.status != 401 else "-", reply.status)
            await reply.send(send)

    async def _check(self, need: Need, headers: Headers) -> None:
        if need == "token":
            if not same_token(bearer(headers), self.token):
                raise DeniedError(401, "no admin token")
            return
        name = SUPEREXEC_AUTH_SIGNATURE_HEADER if need == "superexec" else TASK_TOKEN_HEADER
        found = [value.decode("latin-1") for header, value in headers if header == name.encode()]
        if len(found) != 1 or not found[0]:
            raise DeniedError(401, "no credential")
        if need == "task" and not await self._is_task(found[0]):
            raise DeniedError(401, "no task's token")

    async def _is_task(self, token: str) -> bool:
        now = time.monotonic()
        if self._tasks.get(token, 0.0) > now:
            return True
        try:
            if not await asyncio.to_thread(self.links.task_exists, token):
                return False
        except SQLAlchemyError:
            # Not "no": Flower's client ends its process for a 401.
            raise DeniedError(503, "the database is busy", retry_after=2) from None
        self._tasks = {known: until for known, until in self._tasks.items() if until > now}
        self._tasks[token] = now + TASK_SECONDS
        return True

    async def _serve(self, need: Need, scope: Scope, receive: Receive, send: Send) -> Reply | None:
        """Return the answer, or None where it was streamed."""
        path, headers = scope["path"], scope["headers"]
        # What superexec signs is in the body: it may not be long before Flower has checked it.
        cap = SMALL if need == "superexec" else ADMIN_CAP
        if scope["method"] == "POST" and (declared_length(headers) or 0) > cap:
            raise DeniedError(413, "too large")
        if path in RUNTIME_WRITES and self.disk.short():
            raise self._disk_full()
        # The token ends here: Flower has no use for it, and cannot write it anywhere.
        kept = [(name, value) for name, value in headers if name != b"authorization"]
        inner = {**scope, "state": self.state(), "headers": kept}
        with self.bodies.room("") as room:
            if scope["method"] == "POST":
                receive = replay(await self.bodies.read(room, receive, cap), receive)
            if need == "token":
                await self.app(inner, receive, send)
                return None
            held = await hold(self.app, inner, receive)
        if held.disk_full:
            raise self._disk_full()
        if held.busy and held.reply.status >= 500:
            raise DeniedError(503, "the database is busy", retry_after=2)
        return held.reply

    def _disk_full(self) -> DeniedError:
        free = self.disk.free() // 1_000_000
        words = f"the centre's disk is nearly full: {free} MB free, the run waits"
        self.events.add("disk-full", words)
        return DeniedError(503, "disk", retry_after=15)
