"""What the guard lets through, and what every answer carries, over real HTTP."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.centre.doors import DoorLimits
from server.monitor.guard import MOST_BODY

Serve = Callable[..., Any]
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def check_headers(answer: httpx.Response, tls: bool) -> None:
    """Hold an answer to what each must carry."""
    headers = answer.headers
    assert headers["content-security-policy"] == CSP
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "server" not in headers and "x-powered-by" not in headers
    assert ("strict-transport-security" in headers) is tls


@pytest.mark.parametrize("tls", [False, True])
def test_every_answer_carries_its_headers(served: Serve, tls: bool) -> None:
    page = served(tls=tls)
    client = page.client()
    for path in ("/", "/runs/first", "/runs/none", "/nowhere", "/healthz", "/metrics", "/static/monitor.css"):
        answer = client.get(path)
        check_headers(answer, tls)
        if "html" in answer.headers.get("content-type", ""):
            assert answer.headers["cache-control"] == "no-store"
    check_headers(client.post("/"), tls)
    check_headers(client.get("/", headers={"host": "evil.example"}), tls)


def test_a_browser_is_not_told_to_use_tls_for_everything_on_its_own_machine(served: Serve) -> None:
    answer = served(tls=True).client().get("/healthz", headers={"host": "localhost:1"})
    assert answer.status_code == 200 and "strict-transport-security" not in answer.headers


def test_nothing_but_reading(served: Serve) -> None:
    client = served().client()
    for path in ("/", "/runs/first", "/api/v1/runs", "/metrics", "/healthz", "/live"):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
            answer = client.request(method, path)
            assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD", (method, path)


def test_login_and_logout_take_no_other_method(served: Serve) -> None:
    client = served(login=True).client()
    for path in ("/login", "/logout"):
        assert client.put(path).status_code == 405


def test_head_is_get_without_a_body(served: Serve) -> None:
    client = served().client()
    for path in ("/", "/runs/first", "/healthz", "/metrics", "/nowhere"):
        got, headed = client.get(path), client.head(path)
        assert headed.status_code == got.status_code and not headed.content, path
        assert headed.headers["content-type"] == got.headers["content-type"]
    began = time.monotonic()
    assert client.head("/live").status_code == 200
    assert time.monotonic() - began < 5, "the head of a stream ends"


def test_the_page_goes_by_its_own_names(served: Serve) -> None:
    client = served().client()
    ours = ("localhost", "LOCALHOST:9480", "127.0.0.1:9480", "[::1]:9480", "10.1.2.3")
    others = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "user@localhost")
    for host in ours:
        assert client.get("/healthz", headers={"host": host}).status_code == 200, host
    for host in others:
        assert client.get("/healthz", headers={"host": host}).status_code == 421, host


def test_a_body_is_small_or_refused(served: Serve) -> None:
    page = served(login=True)
    client = page.client()
    kind = {"content-type": "application/x-www-form-urlencoded"}
    big = b"name=alice&password=" + b"x" * MOST_BODY
    assert client.post("/login", content=big, headers=kind).status_code == 413

    def pieces() -> Any:
        for _ in range(2000):
            yield b"x" * 1024

    with contextlib.suppress(httpx.HTTPError):  # cut off while it still sends
        assert client.post("/login", content=pieces(), headers=kind).status_code == 413
    assert client.request("GET", "/healthz", content=b"x" * 10_000).status_code == 413


def test_a_fault_shows_nothing_of_itself(served: Serve, caplog: pytest.LogCaptureFixture) -> None:
    page = served()
    secret = "the-secret-of-a-ledger"

    def broken() -> list[Any]:
        raise ValueError(secret)

    page.monitor.runs.list = broken
    answer = page.client().get("/")
    assert answer.status_code == 500 and secret not in answer.text and "Traceback" not in answer.text
    assert secret in caplog.text and "GET /" in caplog.text
    page.monitor.watch.stop()


def test_an_unknown_run_is_not_found_and_not_repeated(served: Serve) -> None:
    client = served().client()
    for run in ("<script>alert(1)</script>", "..%2F..%2Fetc%2Fpasswd", "none"):
        for path in (f"/runs/{run}", f"/runs/{run}/live", f"/runs/{run}/update"):
            answer = client.get(path)
            assert answer.status_code == 404, path
            assert "script>" not in answer.text.replace('<script src="/static/', "").replace("></script>", "")
            assert "passwd" not in answer.text


def test_slow_and_silent_callers_are_cut_off_and_disturb_nobody(served: Serve) -> None:
    page = served(login=True, limits=DoorLimits(strangers=64, strangers_per_address=64, head_seconds=1.0))
    host, port = page.address.split("/")[2].split(":")
    callers = [socket.create_connection((host, int(port))) for _ in range(50)]
    try:
        for number, caller in enumerate(callers):
            if number % 2:
                caller.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-")
        assert page.client().get("/healthz").status_code == 200
        time.sleep(2.5)
        for caller in callers:
            caller.settimeout(1.0)
            with contextlib.suppress(ConnectionError):
                assert caller.recv(100) == b""
        # Whoever has logged in may stay: a stream is open for longer than a stranger's connection.
        client = page.client()
        page.log_in(client)
        with client.stream("GET", "/live") as stream:
            lines = stream.iter_lines()
            next(lines)
            time.sleep(2.0)
            assert page.monitor.doors.count()[0] >= 1
            assert page.monitor.watch.watchers() == 1
    finally:
        for caller in callers:
            caller.close()
