"""Serve the monitor: where it may be bound, TLS, one process of uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from common.errors import DeploymentError
from server.centre.doors import DoorLimits, Doors
from server.monitor.app import create_app
from server.monitor.live import MOST_STREAMS
from server.monitor.settings import DEFAULT_LISTEN, split_listen
from server.monitor.state import Monitor

PORTS_TRIED = 50
"""Ports after the usual one that are tried where nobody named one."""
THREADS = 8
"""Requests computed at the same time; a run on the same machine comes first."""
DOORS = DoorLimits(
    strangers=512, strangers_per_address=384, head_seconds=10.0, idle_seconds=60.0, busy_seconds=None
)
"""Whoever has not sent a whole request within 10 s is cut off, and so is an idle connection after 60 s."""
MOST_CONNECTIONS = MOST_STREAMS + 700
KEEP_ALIVE = 45
"""Seconds an idle connection is kept: longer than a stream rests, so that no watcher needs a new one."""
GRACE = 1
"""Seconds for requests under way when the monitor stops."""
MOST_HEADER_BYTES = 16_384
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Tls:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


def bind(listen: str, doors: Doors) -> socket.socket:
    """Return a listening socket at ``listen``; without one at the usual address or the next free port.

    Raises:
        DeploymentError: if the address cannot be bound.
        ConfigError: if it is none.
    """
    host, port = split_listen(listen or DEFAULT_LISTEN)
    last = port if listen else port + PORTS_TRIED
    while True:
        try:
            _try(host, port)
            return doors.listen(host, port)
        except OSError as error:
            if port >= last:
                raise DeploymentError(
                    f"the monitor cannot listen on {host}:{port}",
                    found=error.strerror or "",
                    fix="stop whatever uses the port, or name another with --listen",
                ) from None
            port += 1


def _try(host: str, port: int) -> None:
    """Bind and let go again: a port that is taken is learnt without a socket that somebody has to close."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def address_of(listener: socket.socket, secure: bool) -> str:
    """Return where a browser finds the page."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.getfqdn()
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}/"


def make_server(
    monitor: Monitor, tls: Tls | None = None, started: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Return the server of a monitor; ``started`` is called once it answers."""
    config = uvicorn.Config(
        create_app(monitor),
        loop="asyncio",
        http=monitor.doors.protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        backlog=256,
        ssl_certfile=str(tls.certificate) if tls else None,
        ssl_keyfile=str(tls.key) if tls else None,
    )
    return _Server(config, monitor, started)


def serve(monitor: Monitor, listener: socket.socket, server: uvicorn.Server) -> None:
    """Serve until SIGTERM or SIGINT, or until ``server.should_exit``; streams end with it."""
    monitor.watch.start()
    try:
        asyncio.run(server.serve([listener]))
    finally:
        monitor.watch.stop()
        if monitor.access is not None:
            monitor.access.close()


class _Server(uvicorn.Server):
    """Uvicorn, which lets go of streams when it is to stop."""

    def __init__(self, config: uvicorn.Config, monitor: Monitor, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._monitor, self._doors, self._tell = monitor, monitor.doors, started
        self._sweeper: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await super().startup(sockets)
        self._sweeper = asyncio.create_task(self._sweep())
        self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._monitor.watch.let_go()
        asyncio.get_running_loop().call_later(GRACE, self._doors.close)
        if self._sweeper is not None:
            self._sweeper.cancel()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and end well: being asked to is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._doors.sweep()
