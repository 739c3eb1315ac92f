"""Health, truthfully: real gRPC channels, and a SuperLink's stand-in that is really killed and stopped."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import ConfigError, DeploymentError
from server.centre.certificates import create_authority, issue_server
from server.centre.folder import CentreFolder
from server.facts.runs import Runs
from server.monitor import healthz
from server.monitor.health import HealthService, Tls
from server.monitor.healthz import Recent, checks_of
from server.monitor.state import Monitor
from tests.ports import free_port

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PROMISED = 5.0
"""Seconds within which a status follows, docs/monitor-machines.md says."""
SUPERLINK = """
import sys, uvicorn

async def app(scope, receive, send):
    status = 200 if scope["path"] == "/health" else 404
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})

certificate, key, port = sys.argv[1:]
uvicorn.run(app, port=int(port), ssl_certfile=certificate, ssl_keyfile=key, log_level="error", lifespan="off")
"""


class StandIn:
    """Answers /health as a centre's gateway does, in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.centre = CentreFolder(root)
        self.port = free_port()
        keys = root / "keys"
        keys.mkdir(parents=True)
        (root / "centre.toml").write_text(
            f'name = "centre"\naddress = "h:1"\nlisten = "h:1"\nadmin = "127.0.0.1:{self.port}"\n'
        )
        authority = create_authority("centre", ["127.0.0.1"], "c" * 64)
        server = issue_server(authority, "centre", ["127.0.0.1", "localhost"])
        for name, content in (
            ("ca.crt", authority.certificate),
            ("server.crt", server.certificate),
            ("server.key", server.key),
        ):
            (keys / name).write_bytes(content)
        self.tls = Tls(keys / "server.crt", keys / "server.key")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-c",
            SUPERLINK,
            str(self.tls.certificate),
            str(self.tls.key),
            str(self.port),
        ]
        self._process = subprocess.Popen(command)
        context = ssl.create_default_context(cafile=self.centre.key("ca.crt"))
        with httpx.Client(verify=context, trust_env=False) as client:
            await_true(lambda: answers(client, f"https://127.0.0.1:{self.port}/health"), 20.0)

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def end(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def answers(client: httpx.Client, address: str) -> bool:
    try:
        return client.get(address).status_code == 200
    except httpx.TransportError:
        return False


def await_true(happened: Callable[[], bool], seconds: float) -> float:
    """Wait until something happened; returns the seconds that took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path / "centre")
    yield made
    made.end()


@pytest.fixture
def monitor(stand_in: StandIn) -> Iterator[Monitor]:
    made = Monitor(Runs.of_centre(stand_in.centre), centre="centre", folder=stand_in.centre)
    yield made
    made.runs.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., health_pb2_grpc.HealthStub]]:
    """Starts a health service and returns a stub that talks to it over a real channel."""
    services: list[Any] = []

    def start(checks: Any, address: str = "127.0.0.1:0", tls: Tls | None = None, ca: bytes = b"") -> Any:
        service = HealthService(address, checks, tls)
        service.start()
        target = f"127.0.0.1:{service.port}"
        channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(ca))
            if ca
            else grpc.insecure_channel(target)
        )
        services.extend((channel.close, service.stop))
        return health_pb2_grpc.HealthStub(channel)

    yield start
    for end in services:
        end()


def status(stub: Any, service: str) -> Any:
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


def test_the_centre_is_serving_while_its_superlink_answers(
    stand_in: StandIn, monitor: Monitor, serve: Any
) -> None:
    stub = serve(checks_of(monitor))
    assert status(stub, "fedcxr.monitor") == SERVING
    assert status(stub, "fedcxr.centre") == status(stub, "") == NOT_SERVING
    stand_in.start()
    await_true(lambda: status(stub, "fedcxr.centre") == status(stub, "") == SERVING, PROMISED)
    stand_in.end()
    await_true(lambda: status(stub, "fedcxr.centre") == NOT_SERVING, PROMISED)
    assert status(stub, "") == NOT_SERVING
    assert status(stub, "fedcxr.monitor") == SERVING


def test_a_superlink_that_stands_still_is_not_serving(
    stand_in: StandIn, monitor: Monitor, serve: Any
) -> None:
    stand_in.start()
    stub = serve(checks_of(monitor))
    assert status(stub, "fedcxr.centre") == SERVING
    stand_in.signal(signal.SIGSTOP)
    await_true(lambda: status(stub, "fedcxr.centre") == NOT_SERVING, PROMISED)
    stand_in.signal(signal.SIGCONT)
    await_true(lambda: status(stub, "fedcxr.centre") == SERVING, PROMISED)


def test_a_stranger_at_the_centres_address_is_not_the_centre(
    stand_in: StandIn, monitor: Monitor, serve: Any
) -> None:
    stand_in.start()
    another = create_authority("another", ["127.0.0.1"], "d" * 64)
    stand_in.centre.key("ca.crt").write_bytes(another.certificate)
    assert status(serve(checks_of(monitor)), "fedcxr.centre") == NOT_SERVING


def test_a_watch_is_told_of_every_change_and_of_the_end(serve: Any) -> None:
    well = [True]
    stub = serve({"monitor": lambda: well[0]})
    stream = stub.Watch(health_pb2.HealthCheckRequest(service="fedcxr.monitor"), timeout=30)
    assert next(stream).status == SERVING
    for now in (False, True):
        well[0] = now
        began = time.monotonic()
        assert next(stream).status == (SERVING if now else NOT_SERVING)
        assert time.monotonic() - began < PROMISED
    stream.cancel()


def test_a_watcher_is_told_when_the_monitor_ends() -> None:
    service = HealthService("127.0.0.1:0", {"monitor": lambda: True})
    service.start()
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(stream).status == SERVING
        service.stop()
        assert next(stream).status == NOT_SERVING


def test_without_a_centre_its_service_is_unknown(tmp_path: Path, serve: Any) -> None:
    stub = serve(checks_of(Monitor(Runs.of_folder(tmp_path))))
    for service in ("fedcxr.centre", "fedcxr.monitor "):
        with pytest.raises(grpc.RpcError) as refused:
            status(stub, service)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    assert status(stub, "") == SERVING


def test_a_ledger_that_cannot_be_read_is_not_serving(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "torn").mkdir()
    runs = Runs.of_folder(tmp_path)
    stub = serve(checks_of(Monitor(runs)))
    assert status(stub, "fedcxr.monitor") == SERVING
    (tmp_path / "torn" / "ledger.sqlite").write_bytes(b"this is no ledger" * 100)
    await_true(lambda: status(stub, "fedcxr.monitor") == NOT_SERVING, PROMISED)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:50051", "centre.example:50051"])
def test_away_from_loopback_it_does_not_start_without_tls(address: str) -> None:
    with pytest.raises(ConfigError, match="needs TLS"):
        HealthService(address, {})


def test_away_from_loopback_it_speaks_tls_alone(stand_in: StandIn, serve: Any) -> None:
    trusted = stand_in.tls.certificate.read_bytes()
    stub = serve({"monitor": lambda: True}, "0.0.0.0:0", stand_in.tls, trusted)
    assert status(stub, "") == SERVING
    service = HealthService("0.0.0.0:0", {}, stand_in.tls)
    service.start()
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as plain, pytest.raises(grpc.RpcError):
        status(health_pb2_grpc.HealthStub(plain), "")
    service.stop()


def test_a_port_that_is_taken_is_told() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(DeploymentError, match="cannot be started"):
        HealthService(f"127.0.0.1:{taken.getsockname()[1]}", {})


def test_healthz_names_nobody_and_says_what_failed(
    page_centre: Any, page_live: Any, page_serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthz, "_FRESH", -1.0)
    monitor = Monitor(Runs.of_centre(page_centre.folder))
    with page_serving(monitor) as address:
        answer = httpx.get(f"{address}/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "checks": {"monitor": "ok"}})
        torn = page_centre.folder.runs / "torn"
        torn.mkdir()
        (torn / "ledger.sqlite").write_bytes(b"this is no ledger" * 100)
        await_true(lambda: httpx.get(f"{address}/healthz").status_code == 503, PROMISED)
        answer = httpx.get(f"{address}/healthz")
        assert answer.json() == {"status": "failed", "checks": {"monitor": "failed"}}
        assert answer.headers["cache-control"] == "no-store"


def test_healthz_and_metrics_tell_of_the_superlink(
    stand_in: StandIn, monitor: Monitor, page_serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthz, "_FRESH", -1.0)
    with page_serving(monitor) as address:
        for up in (False, True):
            if up:
                stand_in.start()
            answer = httpx.get(f"{address}/healthz")
            assert answer.status_code == (200 if up else 503)
            assert answer.json()["checks"] == {"monitor": "ok", "centre": "ok" if up else "failed"}
            assert f"\nfedcxr_centre_up {float(up)}\n" in httpx.get(f"{address}/metrics").text


def test_asking_often_costs_one_look() -> None:
    now, looks = [0.0], []
    recent = Recent(lambda: not looks.append(1), lambda: now[0])
    assert all(recent() for _ in range(100))
    assert len(looks) == 1
    now[0] = 2.1
    assert recent()
    assert len(looks) == 2
