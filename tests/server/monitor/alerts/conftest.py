"""Facts of a run as the rules see them, and receivers of webhooks and mail that really listen."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.signing import public_text
from server.centre.certificates import create_authority, issue_server
from server.facts.records import Curve, SiteRow, Standing
from server.monitor.alerts.alert import Alert, Notice
from server.monitor.alerts.run_facts import RunFacts

NOW = 1_000_000.0


def make_row(name: str, **over: Any) -> SiteRow:
    facts: dict[str, Any] = {
        "contact": "connected", "heard": NOW - 2.0, "doing": "", "train_studies": 10, "validation_studies": 5,
        "test_studies": 5, "patients": 12, "findings": ("edema",), "participation": (), "update_norm": None,
        "cosine": None, "weight": None, "up": 0, "down": 0, "seconds": None, "auroc": None, "gain": None,
        "personalised_gain": None, "set_aside": 0, "rejections": (),
    }  # fmt: skip
    return SiteRow(name, **facts | over)


def make_curve(metric: str, values: list[float | None], first: int = 0) -> Curve:
    rounds, told = tuple(range(first, first + len(values))), tuple(values)
    better = "lower" if metric == "loss" else "higher"
    return Curve(metric, "", rounds, {"north": told}, told, told, told, told, ("north",) * len(told), better)


def make_facts(state: str = "training", committed: int = 3, **over: Any) -> RunFacts:
    standing = Standing(state, "", committed, 8, committed, NOW - 30.0)  # type: ignore[arg-type]
    facts: dict[str, Any] = {"started": NOW - 3600.0, "quorum": 2}
    return RunFacts("pilot", standing, **facts | over)


def make_notice(status: str = "open", **over: Any) -> Notice:
    facts: dict[str, Any] = {
        "run": "pilot", "rule": "site-silent", "site": "north", "severity": "warning",
        "sentence": "north has not been heard of for 5 min", "since": NOW - 300.0,
    }  # fmt: skip
    return Notice("0123456789abcdef", status, Alert(**facts | over), NOW)  # type: ignore[arg-type]


@dataclass
class Received:
    """One request that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A server on loopback that takes webhooks, answering what ``answer`` says."""

    answer: Callable[[int], int | None] = lambda count: 200
    """Number of the request, from 1 -> status; None: never answer."""
    received: list[Received] = field(default_factory=list)
    redirect_to: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    tls: Any = None

    def __post_init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append(Received(self.path, dict(self.headers), body))
                status = receiver.answer(len(receiver.received))
                if status is None:
                    receiver.released.wait(20)
                    return
                self.send_response(status)
                if receiver.redirect_to:
                    self.send_header("Location", receiver.redirect_to)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_POST  # noqa: N815 - a followed redirect would come as GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if self.tls is not None:
            self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/secret-path"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(**how: Any) -> Receiver:
        made.append(Receiver(**how))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def row() -> Callable[..., SiteRow]:
    return make_row


@pytest.fixture
def curve_of() -> Callable[..., Curve]:
    return make_curve


@pytest.fixture
def facts() -> Callable[..., RunFacts]:
    return make_facts


@pytest.fixture
def notice() -> Callable[..., Notice]:
    return make_notice


@pytest.fixture
def now() -> float:
    return NOW


@dataclass(frozen=True)
class Tls:
    """A certificate for loopback, and the authority that vouches for it."""

    authority: Path
    server: ssl.SSLContext


@pytest.fixture(scope="session")
def loopback_tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    authority = create_authority(
        "test", ["127.0.0.1", "localhost"], public_text(Ed25519PrivateKey.generate())
    )
    issued = issue_server(authority, "test", ["127.0.0.1", "localhost"])
    for name, text in (
        ("ca.crt", authority.certificate),
        ("server.crt", issued.certificate),
        ("server.key", issued.key),
    ):
        (folder / name).write_bytes(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    return Tls(folder / "ca.crt", context)


@pytest.fixture
def secret_file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a secret that only its owner can read; returns the file's name in ``tmp_path``."""

    def write(text: str) -> str:
        number = len([*tmp_path.glob("secret-*")])
        file = tmp_path / f"secret-{number}"
        file.write_text(f"{text}\n")
        file.chmod(0o600)
        return file.name

    return write
