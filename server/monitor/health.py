"""The standard gRPC health service (grpc.health.v1), for load balancers, probes and `grpc_health_probe`.

Services are named ``""`` (all of them together), ``fedcxr.monitor`` and, beside a centre,
``fedcxr.centre``. A status follows what it speaks of within five seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from common.errors import ConfigError, DeploymentError
from server.monitor.healthz import Check
from server.monitor.settings import split_listen

MONITOR, CENTRE = "fedcxr.monitor", "fedcxr.centre"
OVERALL: str = health.OVERALL_HEALTH

_INTERVAL = 1.0
"""Seconds between two looks; a look takes at most some two seconds."""
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second monitor on the same port must fail, not share it
    ("grpc.max_receive_message_length", 4_096),
    ("grpc.max_concurrent_streams", 64),
)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Tls:
    """PEM files of the service's certificate, with its chain, and of its private key."""

    certificate: Path
    key: Path


class HealthService:
    """Answers Check and Watch on one address; looks at everything once a second."""

    def __init__(self, address: str, checks: Mapping[str, Check], tls: Tls | None = None) -> None:
        """Bind ``address`` (HOST:PORT; port 0 is any free one).

        ``checks`` are by name without ``fedcxr.``: ``monitor``, and ``centre`` where there is one.

        Raises:
            ConfigError: if the address is not loopback's and there is no TLS.
            DeploymentError: if the address cannot be bound, or the certificate not be used.
        """
        host, _ = split_listen(address)
        if tls is None and host not in _LOOPBACK:
            raise ConfigError(
                "monitor.health: away from loopback the health service needs TLS",
                found=address,
                fix="set monitor.certificate and monitor.key, or listen on 127.0.0.1",
            )
        self._checks = {f"fedcxr.{name}": check for name, check in checks.items()}
        self._servicer = health.HealthServicer(
            experimental_non_blocking=True,
            experimental_thread_pool=ThreadPoolExecutor(2, "health-watch"),
        )
        self._said: dict[str, bool] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="health", daemon=True)
        self._server = grpc.server(ThreadPoolExecutor(2, "health"), options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self.port = _bind(self._server, address, tls)
        """The port that was bound."""

    def start(self) -> None:
        """Look once, then answer."""
        self._look()
        self._server.start()
        self._thread.start()

    def stop(self) -> None:
        """Tell watchers that this ends, then end."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._servicer.enter_graceful_shutdown()
        self._server.stop(grace=0.5).wait()

    def _follow(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        well = {name: check() for name, check in self._checks.items()}
        for name, fine in (*well.items(), (OVERALL, all(well.values()))):
            if self._said.get(name) is not fine:  # a watcher is told of changes only
                self._said[name] = fine
                self._servicer.set(name, _SERVING if fine else _NOT_SERVING)


def _bind(server: grpc.Server, address: str, tls: Tls | None) -> int:
    try:
        if tls is None:
            return int(server.add_insecure_port(address))
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        return int(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))
    except (RuntimeError, OSError, ValueError):
        raise DeploymentError(
            "the gRPC health service cannot be started",
            found=f"monitor.health = {address!r}",
            fix="see that nobody else has this port, and that the certificate and key can be read",
        ) from None
