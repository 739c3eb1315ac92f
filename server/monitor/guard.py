"""The guard before the page: which requests are served at all, and what every answer carries.

Pure ASGI, so that streams pass through it untouched. Nothing on the page can change a run: but for
login and logout only reading is served, whatever a route would do.
"""

from __future__ import annotations

import html
import ipaddress
import json
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("fedcxr.monitor")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Plotly writes style attributes and draws into data: images; scripts are ours alone."""
MOST_BODY = 4096
"""Bytes of a request's body: a login form."""
POSTS = frozenset({"/login", "/logout"})
LOOPBACK_NAMES = frozenset({"localhost"})
TLS_FOR = 7 * 86_400
"""Seconds for which a browser calls this host over TLS alone (RFC 6797): the whole host, so no year."""
_ALWAYS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
WORDS = {
    400: "This request cannot be understood.",
    403: "This is not for you.",
    404: "There is nothing here.",
    405: "This page only shows; it takes no orders.",
    413: "That is too much.",
    421: "This page does not go by that name.",
    429: "Too many tries. Wait a little.",
    500: "Something went wrong here. The monitor's log says what.",
    503: "Too busy just now. Try again in a moment.",
}
"""Status -> all that is said with it."""


class RefusedRequest(Exception):  # noqa: N818  (an answer, not a fault)
    """A request is answered with a status and a few words."""

    def __init__(self, status: int, text: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.text, self.headers = status, text, headers or {}


class Guard:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, names: frozenset[str], secure: bool) -> None:
        self.app, self.names, self.secure = app, names | LOOPBACK_NAMES, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or say why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        answer = _Answer(scope, send, self.secure)
        try:
            self._check(scope)
            body = await _read(scope, receive)
            # HEAD is GET without the body, for every route and for a stream too.
            inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self.app(inner, _replay(body, receive, answer), answer.send)
        except RefusedRequest as refused:
            await answer.refuse(refused.status, refused.text, refused.headers)
        except Exception:
            log.exception("a fault while answering %s", _route(scope))
            await answer.refuse(500)

    def _check(self, scope: Scope) -> None:
        method, path = scope["method"], scope["path"]
        if method not in ("GET", "HEAD") and not (method == "POST" and path in POSTS):
            allowed = "GET, HEAD, POST" if path in POSTS else "GET, HEAD"
            raise RefusedRequest(405, headers={"allow": allowed, "connection": "close"})
        if not is_our_name(Headers(scope=scope).getlist("host"), self.names):
            raise RefusedRequest(421, headers={"connection": "close"})


def is_our_name(hosts: list[str], names: frozenset[str]) -> bool:
    """Whether a request's Host is one of ours, so that nobody's DNS can lend the page to another site.

    An address in digits is always good: a rebound name is never one.

    >>> is_our_name(["localhost:9480"], frozenset({"localhost"})), is_our_name(["evil.example"], frozenset())
    (True, False)
    >>> [is_our_name(hosts, frozenset()) for hosts in (["[::1]:9480"], ["10.0.0.7"], ["a", "a"], [])]
    [True, True, False, False]
    """
    if len(hosts) != 1:
        return False
    host = hosts[0].strip().lower()
    host = host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = host.rstrip(".")
        return host in names or f"*.{host.partition('.')[2]}" in names
    return True


async def _read(scope: Scope, receive: Receive) -> bytes:
    """Read a small body; nothing that is only to be shown brings a large one."""
    headers = Headers(scope=scope)
    if "content-length" not in headers and "transfer-encoding" not in headers:
        return b""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedRequest(400)
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            raise RefusedRequest(413, headers={"connection": "close"})
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive, answer: _Answer) -> Receive:
    """Hand on the body that was read, then whatever comes: the end of the connection."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        if answer.finished:
            return {"type": "http.disconnect"}
        return await receive()

    return again


class _Answer:
    """What goes back: every header that belongs to it, and for HEAD nothing but headers."""

    def __init__(self, scope: Scope, send: Send, secure: bool) -> None:
        self._scope, self._send, self._secure = scope, send, secure
        self._begun = False
        self.finished = False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if self.finished:
            return
        if message["type"] == "http.response.start":
            self._begun = True
            self._complete(message)
            await self._send(message)
            if self._scope["method"] == "HEAD":
                await self._end()
            return
        self.finished = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, status: int, text: str = "", headers: dict[str, str] | None = None) -> None:
        """Send a small page without details; too late to, end the answer where it is."""
        if self.finished:
            return
        if self._begun:
            # Half an answer must not pass for a whole one: the connection is cut by the server.
            raise ConnectionAbortedError("an answer broke off")
        text = text or WORDS.get(status, "")
        people = for_people(self._scope["path"])
        body = error_page(status, text) if people else error_body(text)
        given = {
            "content-type": "text/html; charset=utf-8" if people else "application/json",
            "content-length": str(len(body)),
            "cache-control": "no-store",
            **(headers or {}),
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    async def _end(self) -> None:
        self.finished = True
        await self._send({"type": "http.response.body", "body": b""})

    def _complete(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _ALWAYS.items():
            headers[name] = value
        if self._secure and not Headers(scope=self._scope).get("host", "").startswith("localhost"):
            headers["strict-transport-security"] = f"max-age={TLS_FOR}"
        headers.setdefault("cache-control", "no-store")


def for_people(path: str) -> bool:
    """Whether a page is asked for, not data.

    >>> for_people("/runs/first"), for_people("/runs/first/update"), for_people("/api/v1/runs")
    (True, False, False)
    """
    return not path.startswith(("/api/", "/metrics", "/openapi.json", "/grafana.json")) and not path.endswith(
        ("/update", "/live")
    )


def error_body(text: str) -> bytes:
    """Return an error for a program."""
    return json.dumps({"detail": text}).encode()


def error_page(status: int, text: str) -> bytes:
    """Return an error for a person, without styles or templates that could fail too."""
    page = (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{status}</title>'
        "<style>:root{color-scheme:light dark}body{font:1.1rem/1.5 system-ui,sans-serif;margin:15vh auto;"
        f"max-width:34rem;padding:0 1rem}}</style><h1>{status}</h1><p>{html.escape(text)}</p>"
        '<p><a href="/">All runs</a></p></html>'
    )
    return page.encode()


def _route(scope: Scope) -> str:
    """Name a request for the log: its method and its route, nothing a caller chose."""
    route = scope.get("route")
    return f"{scope['method']} {getattr(route, 'path', '(no route)')}"
