"""A monitor served by a real uvicorn, with or without TLS and users, for clients at several addresses."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.files import write_atomic
from common.signing import public_text
from server.centre.certificates import create_authority, issue_server
from server.centre.doors import DoorLimits, Doors
from server.facts.runs import Runs
from server.ledger import Ledger
from server.monitor.access import Access
from server.monitor.serve import DOORS, Tls, address_of, bind, make_server, serve
from server.monitor.state import Monitor
from server.monitor.users import Users

PASSWORD = "correct horse battery"
"""Of alice, in every test."""


@dataclass
class Clock:
    """Goes on as time does, and ahead when it is told to."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@dataclass
class Served:
    """A monitor that answers."""

    monitor: Monitor
    server: uvicorn.Server
    address: str
    authority: Path | None
    clock: Clock
    thread: threading.Thread
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def access(self) -> Access:
        """Who may look."""
        assert self.monitor.access is not None
        return self.monitor.access

    def client(self, at: str = "127.0.0.1", **how: object) -> httpx.Client:
        """Return a client at an address of this machine."""
        context = ssl.create_default_context(cafile=self.authority) if self.authority else False
        transport = httpx.HTTPTransport(verify=context, local_address=at)
        made = httpx.Client(base_url=self.address, transport=transport, timeout=20.0, **how)  # type: ignore[arg-type]
        self.clients.append(made)
        return made

    def log_in(self, client: httpx.Client, name: str = "alice", password: str = PASSWORD) -> httpx.Response:
        """Send the form."""
        return client.post("/login", data={"name": name, "password": password})

    def stop(self) -> None:
        """End it."""
        for client in self.clients:
            client.close()
        self.server.should_exit = True
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tls]:
    """A private CA and a certificate of it for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    hosts = ("localhost", "127.0.0.1")
    authority = create_authority("test", hosts, public_text(Ed25519PrivateKey.generate()))
    issued = issue_server(authority, "test", hosts)
    files = {"ca.crt": authority.certificate, "server.crt": issued.certificate, "server.key": issued.key}
    for name, data in files.items():
        write_atomic(folder / name, data)
    return folder / "ca.crt", Tls(folder / "server.crt", folder / "server.key")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two runs, each with a ledger."""
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        ledger = Ledger(tmp_path / "runs" / name / "ledger.sqlite")
        ledger.event("plan", "plan aaaa: lora")
        ledger.close()
    return tmp_path / "runs"


@pytest.fixture
def users(tmp_path: Path) -> Users:
    """A file of users with alice in it."""
    made = Users(tmp_path / "monitor-users.toml")
    made.set("alice", PASSWORD)
    return made


@pytest.fixture
def served(runs: Path, users: Users, certificates: tuple[Path, Tls]) -> Iterator[Callable[..., Served]]:
    """Serve the runs: ``login`` with alice as a user, ``tls`` with the certificate."""
    with ExitStack() as held:

        def make(login: bool = False, tls: bool = False, limits: DoorLimits = DOORS) -> Served:
            authority, pair = certificates
            clock, doors = Clock(), Doors(limits)
            access = Access(users, always=True, clock=clock) if login else None
            shown = Runs.of_folder(runs)
            monitor = Monitor(shown, access=access, secure=tls, doors=doors)
            listener = bind("127.0.0.1:0", doors)
            server = make_server(monitor, pair if tls else None)
            thread = threading.Thread(target=serve, args=(monitor, listener, server), daemon=True)
            address = address_of(listener, tls)
            thread.start()
            end = time.monotonic() + 20
            while not server.started:
                assert time.monotonic() < end
                time.sleep(0.01)
            made = Served(monitor, server, address, authority if tls else None, clock, thread)
            held.callback(shown.close)
            held.callback(made.stop)
            return made

        yield make
