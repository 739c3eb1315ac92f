"""A centre that runs, sites that joined it, and servers on the way that are not what they should be."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from client.gate.approval import approve
from client.join.checks.case import Surroundings
from client.join.doctor import Examination, examine
from client.join.joining import accept_welcome, prepare_site
from client.place import SiteFolder
from common.credentials import WelcomeFile
from common.signing import load_signing_key
from server.centre.certificates import create_authority
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, init_centre, invite_site, open_registry
from simulations.make_site import make_site
from tests.ports import free_port

BASE = "ab" * 32
"""Stands for the digest of a base; doctor does not build one."""


@dataclass
class Deployment:
    """One centre, and how to make sites of it."""

    centre: CentreFolder
    post: Path

    @property
    def port(self) -> int:
        return int(self.centre.config().listen.rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        return int(self.centre.config().admin.rpartition(":")[2])

    def invite(self, folder: Path) -> SiteFolder:
        """Make a phantom site that has sent its request."""
        make_site(folder, folder.name, 24, 1, 48)
        invited = invite_site(self.centre, folder.name, self.post / f"{folder.name}.invitation")
        return prepare_site(invited.path, folder).folder

    def join(self, folder: Path) -> SiteFolder:
        """Make a phantom site that has joined and approved."""
        site = self.invite(folder)
        request = site.root / f"{folder.name}.request"
        welcome = admit_site(self.centre, request, self.post / f"{folder.name}.welcome")
        accept_welcome(welcome.path, site)
        approve(site, site.bundle.read_bytes(), [BASE], "Dr Reviewer")
        return site

    def revoke(self, name: str) -> None:
        with open_registry(self.centre) as registry:
            registry.revoke(name)

    def rewrite_welcome(self, site: SiteFolder, **changes: object) -> None:
        """Have the centre sign another welcome."""
        key = load_signing_key(self.centre.key("centre.key"))
        WelcomeFile.read(site.welcome).model_copy(update=changes).write(site.welcome, key)

    def certificate(self, hosts: tuple[str, ...], begins: int = -1, ends: int = 100) -> tuple[bytes, bytes]:
        """Sign a server certificate with the centre's CA, for days from now; returns certificate and key."""
        return sign_certificate(
            self.centre.key("ca.crt").read_bytes(),
            self.centre.key("ca.key").read_bytes(),
            hosts,
            begins,
            ends,
        )


def sign_certificate(
    ca: bytes, ca_key: bytes, hosts: tuple[str, ...], begins: int, ends: int
) -> tuple[bytes, bytes]:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    signer = load_pem_private_key(ca_key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")]))
        .issuer_name(x509.load_pem_x509_certificate(ca).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .sign(signer, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A centre whose SuperLink runs, behind its guard, on loopback."""
    root = tmp_path_factory.mktemp("deployment")
    (root / "post").mkdir()
    port, admin = free_port(), free_port()
    centre = init_centre(
        root / "centre", "hub", f"localhost:{port}", f"127.0.0.1:{port}", f"127.0.0.1:{admin}"
    )
    made = Deployment(centre, root / "post")
    with (root / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.centre.superlink", str(centre.root)], stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, (root / "superlink.log").read_text()
                    assert time.monotonic() < end
                    time.sleep(0.1)
            yield made
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="session")
def sites(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SiteFolder]:
    """North and south have joined, east has been invited."""
    root = tmp_path_factory.mktemp("sites")
    joined = {name: deployment.join(root / name) for name in ("north", "south")}
    return joined | {"east": deployment.invite(root / "east")}


@pytest.fixture
def site(sites: dict[str, SiteFolder], tmp_path: Path) -> SiteFolder:
    """A copy of north that a test may spoil."""
    shutil.copytree(sites["north"].root, tmp_path / "north")
    return SiteFolder.of(tmp_path / "north")


@pytest.fixture
def serve_tls(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start HTTPS servers that answer their health; returns each one's port."""
    servers: list[socketserver.BaseServer] = []

    def serve(certificate: bytes, key: bytes) -> int:
        pair = tmp_path / f"server-{len(servers)}.pem"
        pair.write_bytes(certificate + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        server = QuietServer(("127.0.0.1", 0), Healthy)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_port

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def serve_proxy() -> Iterator[Callable[..., int]]:
    """Start proxies: ``onward`` is the port every CONNECT leads to, None refuses them all with 403."""
    servers: list[socketserver.BaseServer] = []

    def serve(onward: int | None) -> int:
        class Proxy(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while self.rfile.readline().strip():
                    pass
                if onward is None:
                    self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                    return
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                with socket.create_connection(("127.0.0.1", onward)) as other:
                    back = threading.Thread(target=pump, args=(other, self.connection), daemon=True)
                    back.start()
                    pump(self.connection, other)
                    back.join(5)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return int(server.server_address[1])

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def dropped_port() -> Iterator[int]:
    """A port whose packets vanish, as behind a firewall: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
            waiting.append(caller)
        yield int(listener.getsockname()[1])
        for caller in waiting:
            caller.close()


@pytest.fixture
def plain_port() -> Iterator[int]:
    """A port of another service: HTTP without TLS."""
    server = QuietServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def foreign_certificate() -> tuple[bytes, bytes]:
    """A certificate for localhost of a CA that is not the centre's, as a TLS-inspecting box makes one."""
    other = create_authority("inspection", ("localhost",), "ed25519:" + "A" * 43 + "=")
    return sign_certificate(other.certificate, other.key, ("localhost",), -1, 100)


@dataclass
class Scene:
    """A site to spoil and what to spoil it with."""

    site: SiteFolder
    deployment: Deployment
    sites: dict[str, SiteFolder]
    fixture: Callable[[str], Any]
    now: Callable[[], float] = time.time
    environment: dict[str, str] = field(default_factory=dict)
    memory: int = 16_000_000_000

    def dial(self, address: str) -> None:
        """Have the welcome name another address."""
        self.deployment.rewrite_welcome(self.site, address=address)

    def serve(self, certificate: tuple[bytes, bytes]) -> None:
        """Put a server with this certificate where the centre should be."""
        self.dial(f"localhost:{self.fixture('serve_tls')(*certificate)}")

    def edit(self, file: Path, old: str, new: str) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def examine(self) -> Examination:
        around = Surroundings(self.now, self.environment, lambda: self.memory)
        return examine(self.site.root, around=around)


@pytest.fixture
def scene(
    site: SiteFolder, deployment: Deployment, sites: dict[str, SiteFolder], request: pytest.FixtureRequest
) -> Scene:
    return Scene(site, deployment, sites, request.getfixturevalue)


@pytest.fixture
def held_lock() -> Iterator[Callable[[Path], None]]:
    """Hold a lock as a running node does."""
    held: list[int] = []

    def hold(file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        held.append(os.open(file, os.O_RDWR | os.O_CREAT))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
        os.write(held[-1], str(os.getpid()).encode())

    yield hold
    for descriptor in held:
        os.close(descriptor)


@pytest.fixture
def tiny_disk() -> Iterator[Callable[[Path], None]]:
    """Mount a disk of a megabyte."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this account may not mount a small disk")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


class Healthy(BaseHTTPRequestHandler):
    """Answers everything with 200 and the date."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815  (the name http.server looks for)

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """Says nothing of callers that hang up in the handshake."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Carry bytes one way until the end."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
