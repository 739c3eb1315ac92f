"""The gate behind the guard, and the form that opens it: ``/login`` and ``/logout``."""

from __future__ import annotations

import math
import re
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.monitor.access import LONGEST, Access, ThrottledError
from server.monitor.guard import RefusedRequest

if TYPE_CHECKING:
    from server.monitor.state import Monitor

router = APIRouter(include_in_schema=False)

OPEN = frozenset({"/healthz", "/login", "/logout"})
OPEN_FOLDER = "/static/"
"""What is served without a login: whether it runs, the forms, and the style they are dressed in."""
MACHINES = ("/metrics", "/api/", "/openapi.json", "/grafana.json")
"""Where a program is told that it may bring user and password with each request."""
_NEXT = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]{0,1500}")


class LoginGate:
    """ASGI middleware: whoever is not known gets the form, or 401."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        self.app, self.monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through if it may pass."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        access, state = self.monitor.access, scope.setdefault("state", {})
        user = None
        if access is not None and access.required:
            user = await self._user(access, scope)
            if user is None:
                if not _is_open(scope["path"]):
                    await self._turn_away(scope, receive, send)
                    return
                await self.app(scope, receive, send)
                return
        state["user"] = user
        doors, client = self.monitor.doors, scope.get("client")
        doors.proven(client, user or "anybody")
        doors.begin(client)
        try:
            await self.app(scope, receive, send)
        finally:
            doors.end(client)

    async def _user(self, access: Access, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if token := session_token(headers, self.monitor.secure):
            user = access.session(token)
            if user is not None:
                scope["state"]["still"] = lambda: access.session(token) is not None
                return user
        header = headers.get("authorization", "")
        if not header or _is_open(scope["path"]):
            return None
        try:
            user = await access.basic(header, _address(scope))
        except ThrottledError as error:
            raise RefusedRequest(429, headers={"retry-after": _seconds(error.wait)}) from None
        if user is not None:
            scope["state"]["still"] = lambda: user in access.users.hashes()
        return user

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if path.startswith(MACHINES):
            # RFC 7617: names and passwords are UTF-8.
            challenge = {"www-authenticate": 'Basic realm="fedcxr monitor", charset="UTF-8"'}
            raise RefusedRequest(401, "Please log in.", challenge)
        if "text/html" not in headers.get("accept", ""):
            raise RefusedRequest(401, "Please log in.")
        query = scope["query_string"].decode("latin-1")
        wanted = quote(path) + (f"?{query}" if query else "")
        to = "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='/')}"
        await RedirectResponse(to, 303)(scope, receive, send)


def session_token(headers: Headers, secure: bool) -> str:
    """Return the token a browser brings; empty without one."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies.get(cookie_name(secure))
    return found.value if found else ""


def cookie_name(secure: bool) -> str:
    """Return the cookie's name; the prefix binds it to this host and to TLS (RFC 6265bis, 4.1.3.2)."""
    return "__Host-fedcxr" if secure else "fedcxr-monitor"


@router.get("/login")
async def form(request: Request) -> Response:
    """Show the form."""
    monitor: Monitor = request.app.state.monitor
    if monitor.access is None or not monitor.access.required or getattr(request.state, "user", None):
        return RedirectResponse("/", 303)
    return _form(request, 200, "", where_next(request.query_params.get("next", "")))


@router.post("/login")
async def login(request: Request) -> Response:
    """Begin a session."""
    monitor: Monitor = request.app.state.monitor
    if monitor.access is None or not monitor.access.required:
        return RedirectResponse("/", 303)
    check_origin(request.headers, monitor.secure)
    fields = _fields(request.headers, await request.body())
    to = where_next(fields.get("next", ""))
    name, password = fields.get("name", "").strip(), fields.get("password", "")
    try:
        token = await monitor.access.login(name, password, _address(request.scope))
    except ThrottledError as error:
        seconds = _seconds(error.wait)
        text = f"Too many wrong tries. Nothing was checked; try again in {seconds} s."
        return _form(request, 429, text, to, {"Retry-After": seconds})
    if token is None:
        return _form(request, 401, "The name or the password is not right.", to)
    answer = RedirectResponse(to, 303)
    answer.set_cookie(
        cookie_name(monitor.secure),
        token,
        max_age=int(LONGEST),
        path="/",
        secure=monitor.secure,
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout")
async def logout(request: Request) -> Response:
    """End the session."""
    monitor: Monitor = request.app.state.monitor
    check_origin(request.headers, monitor.secure)
    token = session_token(request.headers, monitor.secure)
    if monitor.access is not None and token:
        monitor.access.logout(token)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(
        cookie_name(monitor.secure), path="/", secure=monitor.secure, httponly=True, samesite="strict"
    )
    return answer


def check_origin(headers: Headers, secure: bool) -> None:
    """Refuse a form that another page has sent (OWASP, "Cross-site request forgery prevention").

    Browsers say where a request comes from: ``Sec-Fetch-Site``, older ones ``Origin``. A program that
    says neither carries no cookie that somebody else could use.

    Raises:
        RefusedRequest: 403 if it is another's.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        ours = site == "same-origin"
    else:
        origin = headers.get("origin")
        ours = origin is None or origin == f"http{'s' if secure else ''}://{headers.get('host', '')}"
    if not ours:
        raise RefusedRequest(403, "This form came from another page.")


def where_next(text: str) -> str:
    """Return a path of ours to go on to, whatever an address asks for.

    >>> [where_next(text) for text in ("/runs/first?metric=loss", "//evil.example", "https://x", "")]
    ['/runs/first?metric=loss', '/', '/', '/']
    """
    if not _NEXT.fullmatch(text) or text.startswith(("/login", "/logout")):
        return "/"
    parts = urlsplit(text)
    return "/" if parts.scheme or parts.netloc else text


def _fields(headers: Headers, body: bytes) -> dict[str, str]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise RefusedRequest(400)
    try:
        found = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError:
        raise RefusedRequest(400) from None
    return {name: values[-1] for name, values in found.items()}


def _form(
    request: Request, status: int, problem: str, to: str, headers: dict[str, str] | None = None
) -> Response:
    from server.monitor.layout import page

    shown = page(request, "login.html.j2", status=status, problem=problem, next=to, here=None)
    shown.headers.update(headers or {})
    return shown


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDER)


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("", 0))[0])


def _seconds(wait: float) -> str:
    return str(max(1, math.ceil(wait)))
