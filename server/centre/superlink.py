"""Flower's SuperLink between two guards: ``python -m server.centre.superlink CENTRE_FOLDER``.

One process and one event loop serve the public listener (sites) and the admin listener (the centre's
own commands and processes), both with the centre's certificate. Everything that must outlive the
process is in the centre's folder, so it resumes where it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from common.console import fail_clearly
from common.errors import CredentialError, DeploymentError
from server.centre.certificates import split_address
from server.centre.doors import DoorLimits, Doors
from server.centre.folder import CentreFolder

if TYPE_CHECKING:
    from server.centre.admin import AdminGuard
    from server.centre.gateway import Guard
    from server.centre.members import Members
    from server.centre.pulse import Pulse

MOST_HEADER_BYTES = 16_384
"""Of one request's head; Flower's own is about a thousand."""
GRACE_SECONDS = 2
"""For requests under way when the centre stops; sites send again what was cut off."""
DATABASE_OF_GATEWAY = "gateway.sqlite"

log = logging.getLogger("fedcxr.centre")


@dataclass
class Centre:
    """The app, its guards and their listeners."""

    app: Any
    """Flower's FastAPI app."""
    public: Guard
    admin: AdminGuard
    doors: Doors
    admin_doors: Doors
    members: Members
    pulse: Pulse
    folder: CentreFolder


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a centre until SIGTERM or SIGINT."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with fail_clearly():
        folder = CentreFolder.find(Path(arguments[0]) if arguments else None)
        prepare(folder)
        asyncio.run(serve(build(folder)))


def prepare(folder: CentreFolder) -> None:
    """Set what Flower reads at import, and what this process may use."""
    os.umask(0o077)
    os.environ.setdefault("FLWR_HOME", str(folder.flower_home))
    for name, value in (
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("FLWR_DISABLE_UPDATE_CHECK", "1"),
        ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
        ("FLWR_LOG_LEVEL", "INFO"),
    ):
        os.environ[name] = value
    # Flower opens listeners of its own, without a guard, where these are set.
    for name in ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API"):
        os.environ.pop(name, None)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))


def build(folder: CentreFolder) -> Centre:
    """Make Flower's app and put a guard before each of its faces.

    Raises:
        CredentialError: if a key of the centre is missing or empty.
    """
    from server.centre.admin import AdminGuard
    from server.centre.binding import Binding
    from server.centre.credentials import NodeCredentials, Roster
    from server.centre.events import Events
    from server.centre.faults import listen_to_databases, quiet_logs
    from server.centre.gateway import Guard
    from server.centre.limits import Bodies, BodyLimits, Disk
    from server.centre.links import Links
    from server.centre.mailbook import Mailbook
    from server.centre.members import Members
    from server.centre.pulse import Pulse
    from server.centre.registry import Registry

    config = folder.config()
    secret = _key(folder, "superexec.secret")
    token = _key(folder, "admin.token").decode("ascii", "replace").strip()
    _key(folder, "server.crt"), _key(folder, "server.key")
    listen_to_databases()
    app = flower_app(folder, secret)
    quiet_logs()
    links = Links(app.state.linkstate_factory.state())
    events, registry = Events(folder.logs), Registry(folder.registry)
    roster, pulse = Roster(registry), Pulse(links)
    disk = Disk(folder.root, config.min_free_disk)
    doors, admin_doors = Doors(), Doors(DoorLimits(busy_seconds=None))
    guard = Guard(
        app,
        credentials=NodeCredentials(roster),
        binding=Binding(links, Mailbook(folder.root / DATABASE_OF_GATEWAY), events),
        bodies=Bodies(),
        disk=disk,
        doors=doors,
        events=events,
        pulse=pulse,
        max_body=config.max_body,
    )
    # A ServerApp that stood still for minutes, as on a laptop that slept, finds its request still there.
    patient = Bodies(BodyLimits(idle_seconds=300, total_seconds=900))
    admin = AdminGuard(
        app,
        token=token,
        links=links,
        bodies=patient,
        disk=disk,
        doors=admin_doors,
        events=events,
        pulse=pulse,
    )
    members = Members(registry, roster, links, events)
    return Centre(app, guard, admin, doors, admin_doors, members, pulse, folder)


def flower_app(folder: CentreFolder, secret: bytes) -> Any:
    """Make Flower's FastAPI app as ``flower-superlink --isolation process --enable-supernode-auth`` does."""
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    host, port = split_address(folder.config().admin)
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=host,
        port=port,
        insecure=False,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(folder.key("ca.crt")),
        ssl_certfile=str(folder.key("server.crt")),
        ssl_keyfile=str(folder.key("server.key")),
        database=str(folder.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


async def serve(centre: Centre) -> None:
    """Serve both listeners until a signal comes.

    Raises:
        DeploymentError: if an address cannot be bound.
    """
    config = centre.folder.config()
    servers: list[_Server] = []
    sockets: list[socket.socket] = []
    for app, doors, address in (
        (centre.public, centre.doors, config.listen),
        (centre.admin, centre.admin_doors, config.admin),
    ):
        try:
            sockets.append(doors.listen(*split_address(address)))
        except OSError as error:
            raise DeploymentError(
                f"cannot listen on {address}",
                found=error.strerror or "",
                fix="stop whatever uses the port, or change centre.toml",
            ) from None
        servers.append(_Server(_uvicorn(app, doors, centre.folder)))

    def stop() -> None:
        for server in servers:
            server.should_exit = True
        for doors in (centre.doors, centre.admin_doors):
            loop.call_later(GRACE_SECONDS, doors.close)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with centre.app.router.lifespan_context(centre.app):
        centre.pulse.start()
        await asyncio.to_thread(centre.members.settle)
        keeper = asyncio.create_task(_keep(centre, servers))
        log.info("sites on %s, admin on %s", config.listen, config.admin)
        try:
            await asyncio.gather(
                *(server.serve([listener]) for server, listener in zip(servers, sockets, strict=True))
            )
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            await asyncio.to_thread(centre.members.write_heard, centre.public, True)
    log.info("stopped")


async def _keep(centre: Centre, servers: Sequence[uvicorn.Server]) -> None:
    """Twice a second: sweep the doors, settle the members, see whether there is a new certificate."""
    certificate = _stamp(centre.folder)
    while True:
        await asyncio.sleep(0.5)
        centre.pulse.beat()
        centre.doors.sweep()
        centre.admin_doors.sweep()
        try:
            for site in await asyncio.to_thread(centre.members.settle):
                centre.doors.shut_out(site)
            await asyncio.to_thread(centre.members.write_heard, centre.public)
            if (found := _stamp(centre.folder)) != certificate:
                _load_certificate(centre.folder, servers)
                certificate = found
                log.info("a new server certificate is in use")
        except Exception as error:  # noqa: BLE001  (the keeper outlives a database that is busy or full)
            log.warning("keeping the members failed: %s", type(error).__name__)


def _uvicorn(app: Any, doors: Doors, folder: CentreFolder) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=doors.protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2 * GRACE_SECONDS,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        backlog=1024,
        ssl_certfile=str(folder.key("server.crt")),
        ssl_keyfile=str(folder.key("server.key")),
    )


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``serve``: two servers stop together."""
        yield


def _load_certificate(folder: CentreFolder, servers: Sequence[uvicorn.Server]) -> None:
    for server in servers:
        if server.config.ssl is not None:
            server.config.ssl.load_cert_chain(folder.key("server.crt"), folder.key("server.key"))


def _stamp(folder: CentreFolder) -> int:
    with contextlib.suppress(OSError):
        return folder.key("server.crt").stat().st_mtime_ns
    return 0


def _key(folder: CentreFolder, name: str) -> bytes:
    try:
        data = folder.key(name).read_bytes()
    except OSError:
        data = b""
    if not data.strip():
        raise CredentialError(
            f"keys/{name} is missing or empty", fix="restore it from a backup, or: fedcxr-server init"
        )
    return data


if __name__ == "__main__":
    main()
