"""A real centre process over TLS, and what a test asks it."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from server.centre.events import read_events
from server.centre.folder import CentreFolder
from server.centre.registry import Registry
from tests.server.centre.gateway.flower_site import Site

PROTOBUF = "application/protobuf"


@dataclass
class CentreProcess:
    """``python -m server.centre.superlink FOLDER``."""

    folder: CentreFolder
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)
    small_disk: int = 0
    """Bytes of a file system of its own, in a mount namespace of its own; 0 for none."""

    def __post_init__(self) -> None:
        self.log = self.folder.root.with_name("superlink.log")

    @property
    def ca(self) -> bytes:
        return self.folder.key("ca.crt").read_bytes()

    @property
    def public(self) -> str:
        return self.folder.config().listen

    @property
    def admin(self) -> str:
        return self.folder.config().admin

    @property
    def token(self) -> str:
        return self.folder.key("admin.token").read_text().strip()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        command = [sys.executable, "-m", "server.centre.superlink", str(self.folder.root)]
        if self.small_disk:
            script = (
                'set -e; root="$1"; shift; cp -a "$root" "$root.copy"'
                f' && mount -t tmpfs -o size={self.small_disk} none "$root"'
                ' && cp -a "$root.copy/." "$root" && exec "$@"'
            )
            command = ["unshare", "-Urm", "sh", "-c", script, "sh", str(self.folder.root), *command]
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                cwd=Path(__file__).parents[4],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.wait()

    def wait(self, seconds: float = 40.0) -> None:
        ends = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(f"https://{self.public}/health", verify=self.tls()).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.ca.decode())
        return context

    def post(self, face: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        sent = {"content-type": PROTOBUF} | {name.replace("_", "-"): v for name, v in headers.items()}
        return httpx.post(f"https://{face}{path}", content=body, headers=sent, verify=self.tls(), timeout=30)

    def connect(self, tls: bool = True) -> socket.socket:
        host, port = self.public.split(":")
        plain = socket.create_connection((host, int(port)), timeout=30)
        return self.tls().wrap_socket(plain, server_hostname=host) if tls else plain

    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def admit(self, name: str) -> Site:
        """Put a site with new keys in the registry and wait until the gateway knows its node."""
        site = self.register(name)
        site.wait_for_node()
        return site

    def register(self, name: str) -> Site:
        """Put a site with new keys in the registry."""
        private, public = generate_key_pairs()
        site = Site(self, name, private, public_key_to_bytes(public))
        with Registry(self.folder.registry) as registry:
            secret = registry.invite(name)
            registry.admit(name, site.key, f"ed25519:{hashlib.sha256(site.key).hexdigest()}", secret)
        return site

    def registry(self) -> Registry:
        return Registry(self.folder.registry)

    def events(self, **wanted: str) -> list[dict[str, Any]]:
        return [
            event
            for event in read_events(self.folder.logs)
            if all(event.get(name) == value for name, value in wanted.items())
        ]

    @property
    def inside(self) -> Path:
        """The folder as the process sees it; not for SQLite, which follows /proc to the outer one."""
        return Path(f"/proc/{self.pid}/root") / str(self.folder.root).lstrip("/")
