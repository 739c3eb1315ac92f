"""Logins over real HTTP: what is open, cookies, forms of others, sessions, passwords in their file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from common.errors import ConfigError, CredentialError
from server.monitor import live
from server.monitor.access import BASIC_FOR, IDLE, LONGEST, MOST_SESSIONS, Access
from server.monitor.login import MACHINES
from server.monitor.users import Users

Serve = Callable[..., Any]
RIGHT = "correct horse battery"


def paths_of(page: Any) -> set[str]:
    """Every path the application serves, with something in place of its parameters."""
    routes = [route for route in _routes(page.server.config.app) if hasattr(route, "path")]
    filled = {re.sub(r"\{run(:\w+)?\}", "first", route.path) for route in routes}
    return {re.sub(r"\{[^}]*\}", "thing", path) for path in filled}


def _routes(app: Any) -> list[Any]:
    while not hasattr(app, "router"):
        app = app.app
    found: list[Any] = []
    for route in app.router.routes:
        inner = getattr(route, "original_router", None)
        found += inner.routes if inner is not None else [route]
    return found


def test_without_a_login_only_the_form_health_and_the_style_are_served(served: Serve) -> None:
    page = served(login=True, tls=True)
    client, paths = page.client(), paths_of(page)
    assert {"/", "/login", "/runs/first", "/runs/first/live", "/live", "/healthz"} <= paths
    for path in sorted(paths):
        for accept in ("text/html", "application/json", "*/*"):
            answer = client.get(path, headers={"accept": accept})
            if path in ("/login", "/healthz"):
                assert answer.status_code == 200, path
            elif path.startswith("/static/"):
                assert answer.status_code in (200, 404), path
            elif path == "/logout":
                assert answer.status_code == 405, path
            elif accept == "text/html" and not path.startswith(MACHINES):
                assert answer.status_code == 303, path
                assert answer.headers["location"].startswith("/login"), path
            else:
                assert answer.status_code == 401, path
            assert "first" not in answer.text, path
    assert client.get("/metrics").headers["www-authenticate"].startswith("Basic ")
    assert "www-authenticate" not in client.get("/runs/first/update").headers, "browsers would ask too"


def test_a_session_from_login_to_logout(served: Serve) -> None:
    page = served(login=True, tls=True)
    client = page.client()
    turned = client.get("/runs/first?metric=loss", headers={"accept": "text/html"})
    assert turned.headers["location"] == "/login?next=/runs/first%3Fmetric%3Dloss"
    form = client.get(turned.headers["location"])
    assert form.status_code == 200 and 'value="/runs/first?metric=loss"' in form.text
    fields = {"name": "alice", "password": RIGHT, "next": "/runs/first?metric=loss"}
    answer = client.post("/login", data=fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/first?metric=loss")
    cookie = answer.headers["set-cookie"]
    name, _, rest = cookie.partition("=")
    assert name == "__Host-fedcxr"
    parts = {part.strip().lower() for part in rest.split(";")[1:]}
    assert {"httponly", "secure", "samesite=strict", "path=/"} <= parts
    assert not [part for part in parts if part.startswith("domain")]
    token = rest.split(";")[0]
    assert len(token) >= 43, "256 bits"
    assert token not in repr(vars(page.access)), "only its digest is kept"
    assert client.get("/runs/first").status_code == 200
    assert client.get("/login").headers["location"] == "/"

    assert client.post("/logout").headers["location"] == "/login"
    assert client.get("/runs/first").status_code == 401
    stolen = httpx.Cookies()
    stolen.set("__Host-fedcxr", token, domain="127.0.0.1")
    client.cookies = stolen
    assert client.get("/runs/first").status_code == 401, "the session is over, not only the cookie"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_logs_in_by_keyboard_and_axe_finds_no_violation(
    served: Serve, page_browser: Any, theme: str
) -> None:
    site = served(login=True)
    page = page_browser.new_page(color_scheme=theme)
    page.goto(f"{site.address}runs/first")
    assert Axe().run(page).response["violations"] == []
    page.keyboard.type("alice")
    page.keyboard.press("Tab")
    page.keyboard.type("a wrong password")
    page.keyboard.press("Enter")
    page.locator("[role=alert]").wait_for()
    assert Axe().run(page).response["violations"] == []
    page.get_by_label("Name").fill("alice")
    page.get_by_label("Password").fill(RIGHT)
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/first")
    assert "first" in page.locator("h1").inner_text()
    page.context.close()


def test_without_tls_the_cookie_is_still_kept_from_scripts_and_strangers(served: Serve) -> None:
    page = served(login=True)
    answer = page.log_in(page.client())
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie


FROM_ELSEWHERE = (
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "none"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site", "origin": "ours"},
)


@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_a_form_of_another_page_is_refused(served: Serve, path: str) -> None:
    page = served(login=True)
    client, form = page.client(), {"name": "alice", "password": RIGHT}
    page.log_in(client)
    ours, computed = page.address.rstrip("/"), page.access.computed
    for headers in FROM_ELSEWHERE:
        sent = {name: ours if value == "ours" else value for name, value in headers.items()}
        assert client.post(path, data=form, headers=sent).status_code == 403, headers
    assert page.access.computed == computed
    assert client.get("/").status_code == 200, "still logged in"
    # A browser under Referrer-Policy: no-referrer sends its own forms with a null origin.
    for good in ({"sec-fetch-site": "same-origin", "origin": "null"}, {"origin": ours}):
        assert client.post(path, data=form, headers=good).status_code == 303


def test_login_leads_nowhere_else(served: Serve) -> None:
    page = served(login=True)
    wanted = (
        "//evil.example", "https://evil.example", "/\\evil.example", "/%0d%0aX: y", "/\r\nX: y", "evil",
        "/login",
    )  # fmt: skip
    for to in wanted:
        answer = page.client().post("/login", data={"name": "alice", "password": RIGHT, "next": to})
        assert answer.status_code == 303, to
        location = httpx.URL(page.address).join(answer.headers["location"])
        assert location.host == "127.0.0.1" and location.path != "/login" and "x" not in answer.headers, to


def test_whatever_the_form_holds_is_answered(served: Serve) -> None:
    page = served(login=True)
    form = "application/x-www-form-urlencoded"
    sent = (
        (b"name=alice&password=%ff%fe", form),
        (b"\xff\xfe", form),
        (b'{"name": "alice"}', "application/json"),
        (b"", form),
        (b"&".join(b"a=1" for _ in range(50)), form),
        (b"name=alice&password=" + b"x" * 3000, form),
    )
    for body, kind in sent:
        answer = page.client().post("/login", content=body, headers={"content-type": kind})
        assert answer.status_code in (400, 401), body[:40]


def test_sessions_end_when_they_should(served: Serve) -> None:
    page = served(login=True)
    client = page.client()

    def inside() -> bool:
        return bool(client.get("/").status_code == 200)

    page.log_in(client)
    for _ in range(3):
        page.clock.ahead += IDLE - 5
        assert inside()
    page.clock.ahead += IDLE + 1
    assert not inside()

    page.log_in(client)
    for _ in range(int(LONGEST // IDLE) + 1):
        page.clock.ahead += IDLE - 5
        lasted = inside()
    assert not lasted, "also a busy one ends after twelve hours"

    page.log_in(client)
    page.access.users.set("alice", "another password")
    assert not inside()
    assert page.log_in(client).status_code == 401
    assert page.log_in(client, password="another password").status_code == 303
    page.access.users.set("bob", "a password of bob's")
    page.access.users.remove("alice")
    assert not inside()


def test_without_any_user_left_the_page_stays_shut(served: Serve) -> None:
    page = served(login=True)
    page.access.users.remove("alice")
    assert page.client().get("/").status_code == 401
    os.chmod(page.access.users.file, 0o644)
    assert page.client().get("/").status_code == 401


def test_a_user_made_while_it_runs_closes_an_open_page(tmp_path: Path) -> None:
    users = Users(tmp_path / "users.toml")
    access = Access(users, always=False)
    assert not access.required
    users.set("alice", RIGHT)
    assert access.required
    users.remove("alice")
    assert access.required, "nothing opens it again but a new start"
    damaged = tmp_path / "damaged.toml"
    damaged.write_text("users = 3")
    damaged.chmod(0o600)
    assert Access(Users(damaged), always=False).required
    access.close()


def test_a_user_has_only_so_many_sessions(served: Serve) -> None:
    page = served(login=True)
    first = page.client()
    page.log_in(first)
    for _ in range(MOST_SESSIONS):
        page.log_in(page.client())
    assert first.get("/").status_code == 401


def test_a_machine_pays_for_its_password_once_in_five_minutes(served: Serve) -> None:
    page = served(login=True)
    client = page.client()
    before = page.access.computed
    for _ in range(30):
        assert client.get("/metrics", auth=("alice", RIGHT)).status_code == 200
    assert page.access.computed == before + 1
    page.clock.ahead += BASIC_FOR + 1
    client.get("/metrics", auth=("alice", RIGHT))
    assert page.access.computed == before + 2
    page.access.users.set("alice", "another password")
    assert client.get("/metrics", auth=("alice", RIGHT)).status_code == 401
    assert RIGHT not in repr(vars(page.access))


def test_a_stream_ends_with_its_session(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT", 0.2)
    page = served(login=True)
    client = page.client()
    page.log_in(client)
    with client.stream("GET", "/live") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry:")
        page.client().post("/logout", headers={"cookie": _cookie(client)})
        for _ in lines:  # to the end, which comes
            pass


def _cookie(client: httpx.Client) -> str:
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)


def test_the_file_holds_hashes_that_another_reader_verifies(tmp_path: Path) -> None:
    users = Users(tmp_path / "keys" / "monitor-users.toml")
    assert users.set("alice", RIGHT) and not users.set("alice", RIGHT) and users.set("bob.b-2", RIGHT)
    assert users.file is not None
    text = users.file.read_text()
    assert RIGHT not in text and users.file.stat().st_mode & 0o777 == 0o600
    hashes = users.hashes()
    assert hashes["alice"] != hashes["bob.b-2"], "each has a salt of its own"
    memory, passes, lanes = map(int, re.findall(r"[mtp]=(\d+)", hashes["alice"]))
    assert memory >= 19 * 1024 and passes >= 2 and lanes == 1, "OWASP's least for Argon2id"
    Argon2id.verify_phc_encoded(RIGHT.encode(), hashes["alice"])
    with pytest.raises(InvalidKey):
        Argon2id.verify_phc_encoded(b"correct horse batterx", hashes["alice"])


@pytest.mark.parametrize("password", ["", "elevenchars", "x" * 2000])
def test_a_password_that_will_not_do(tmp_path: Path, password: str) -> None:
    users = Users(tmp_path / "users.toml")
    with pytest.raises(ConfigError, match="password is too"):
        users.set("alice", password)
    assert not (tmp_path / "users.toml").exists()


@pytest.mark.parametrize("name", ["", "Alice", "a b", "../x", "a" * 40, '"]', "-a"])
def test_a_name_that_will_not_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Users(tmp_path / "users.toml").set(name, RIGHT)


@pytest.mark.parametrize(
    "text",
    [
        "alice = 3",
        "[users]\nalice = 3",
        '[users]\nalice = "correct horse battery"',
        '[users]\nalice = "$argon2id$v=19$m=999999,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaA"',
        '[users]\n"A B" = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaA"',
        "\xff",
    ],
)
def test_a_damaged_file_is_said_and_lets_nobody_in(tmp_path: Path, text: str) -> None:
    file = tmp_path / "users.toml"
    file.write_bytes(text.encode("latin-1"))
    file.chmod(0o600)
    users = Users(file)
    with pytest.raises(CredentialError):
        users.read()
    assert users.hashes() == {} and users.damaged


def test_a_file_others_can_read_is_refused(tmp_path: Path) -> None:
    users = Users(tmp_path / "users.toml")
    users.set("alice", RIGHT)
    (tmp_path / "users.toml").chmod(0o640)
    with pytest.raises(CredentialError, match="read by others"):
        users.read()
    assert users.hashes() == {}
