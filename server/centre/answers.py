"""What the guards say: short constant answers, and answers of the inner app held until checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.centre.faults import is_disk_full, watch_faults
from server.centre.limits import App, Message, Receive, Scope, Send

log = logging.getLogger("fedcxr.centre")

WORDS: Mapping[int, str] = {
    400: "malformed request",
    401: "authentication failed",
    403: "not for this site",
    404: "not found",
    411: "length required",
    413: "too large",
    415: "unsupported content type",
    500: "internal error",
    503: "try again later",
}
"""Status -> the only words that are said with it."""

LATE = "the answer came after its deadline"


@dataclass
class Reply:
    """A whole answer of the inner app."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def send(self, send: Send) -> None:
        """Pass it on."""
        headers = [(name, value) for name, value in self.headers if name != b"content-length"]
        headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def refusal(status: int, *, close: bool, retry_after: int = 0, detail: str = "") -> Reply:
    """Return a constant JSON answer; ``close`` ends the connection, unread body and all."""
    headers = [(b"content-type", b"application/json")]
    if close:
        headers.append((b"connection", b"close"))
    if retry_after:
        headers.append((b"retry-after", str(retry_after).encode()))
    body = json.dumps({"detail": detail or WORDS.get(status, "refused")}).encode()
    return Reply(status, headers, body)


def health(method: str) -> Reply:
    """Return the answer that anybody may have."""
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    return Reply(200, headers, b"" if method == "HEAD" else b"ok")


@dataclass
class Held:
    """An inner answer and what happened in the database meanwhile."""

    reply: Reply
    disk_full: bool
    busy: bool


async def hold(app: App, scope: Scope, receive: Receive) -> Held:
    """Call the inner app and keep its answer back."""
    reply = Reply()

    async def keep(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            reply.body += message.get("body", b"")

    with watch_faults() as faults:
        try:
            await app(scope, receive, keep)
        except Exception as error:  # noqa: BLE001  (the words of a fault inside are not for a caller)
            log.error("a fault in Flower's app: %s", type(error).__name__)
            faults.disk_full |= is_disk_full(error)
            reply = refusal(500, close=False)
        return Held(reply, faults.disk_full, faults.busy)
