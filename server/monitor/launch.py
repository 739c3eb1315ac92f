"""From a command line to a monitor that serves: which runs, which settings, whether it may.

Bound to loopback by default. Anywhere else it starts only with TLS and with somebody who can log in;
no option switches that off.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import resource
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

from common.certificate import check_dates, hosts_in
from common.errors import ConfigError, CredentialError, DeploymentError
from server.centre.doors import Doors
from server.centre.folder import CENTRE, CentreFolder
from server.monitor.access import Access
from server.monitor.serve import DOORS, Tls, address_of, bind, make_server, serve
from server.monitor.settings import MonitorSettings, read_settings
from server.monitor.state import Monitor
from server.monitor.users import FILE, Users

if TYPE_CHECKING:
    from server.facts.runs import Runs
    from server.monitor.alerts.loop import AlertLoop

NICE = 10
"""How far the monitor stands back for whatever else computes on this machine."""
MOST_FILES = 8192
"""Open at once: a connection per watcher, three files per ledger."""
_SIMULATED = Path("runs")
"""Where simulations write, seen from the working folder."""


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    run: str | None = None
    centre: Path | None = None
    runs: Path | None = None
    listen: str = ""
    config: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Ready:
    """A monitor that is bound and not yet serving."""

    monitor: Monitor
    listener: socket
    tls: Tls | None
    loop: AlertLoop | None
    """Looks for what is to be told; None where nobody is to be told."""
    page: str
    """Path of the page to open first, without its ``/``."""

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return address_of(self.listener, self.tls is not None) + self.page


def prepare(wanted: Wanted) -> Ready:
    """Find the runs, read the settings, bind the address, and check that it may be used.

    Raises:
        ConfigError: if settings or options are wrong.
        RunError: if the run is unknown.
        CredentialError: if the certificate or the file of users cannot be used.
        DeploymentError: if the address cannot be bound, or may not be without TLS and a login.
    """
    centre, runs, key = _runs(wanted)
    file = wanted.config or (centre.root / "centre.toml" if centre else None)
    settings, alerts = read_settings(file)
    name = centre.config().name if centre else ""
    loop = _alerts(runs, alerts, file, name)
    users = Users(users_file(centre, wanted.config))
    users.read()
    doors = Doors(DOORS)
    listener = bind(wanted.listen or settings.listen, doors)
    try:
        outside = not ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        tls = _tls(wanted, settings, centre, outside)
        if outside:
            _may_be_outside(listener, tls, users)
        if settings.login and not users.hashes():
            raise DeploymentError(
                "the monitor asks for a login and nobody has a password", fix=_give_a_password(users)
            )
        monitor = Monitor(
            runs,
            settings,
            access=Access(users, always=outside or settings.login),
            secure=tls is not None,
            names=_names(wanted.listen or settings.listen, settings, tls),
            centre=name,
            folder=centre,
            doors=doors,
        )
    except BaseException:
        listener.close()
        raise
    return Ready(monitor, listener, tls, loop, f"runs/{key}" if key else "")


def launch(ready: Ready, say: Callable[[str], None], open_browser: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, having said where; alerts and the health service run beside."""
    os.nice(NICE)  # before any thread begins: on Linux each has its own
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MOST_FILES), most))

    def started() -> None:
        say(f"Monitor: {ready.address}")
        if open_browser:
            import webbrowser

            webbrowser.open(ready.address)

    with ExitStack() as beside:
        _start_health(ready, beside, say)
        _start_alerts(ready, beside, say)
        serve(ready.monitor, ready.listener, make_server(ready.monitor, ready.tls, started))


def users_file(centre: CentreFolder | None, config: Path | None) -> Path | None:
    """Return where users are kept: among the centre's keys, or beside a monitor's own settings."""
    if config is not None:
        return config.resolve().parent / FILE
    return centre.key(FILE) if centre is not None else None


def _runs(wanted: Wanted) -> tuple[CentreFolder | None, Runs, str]:
    """Return the centre, if it is one's, the runs to show, and the key of the run to open."""
    from server.facts.runs import Runs

    run, folder = wanted.run, wanted.runs
    if folder is not None and wanted.centre is not None:
        raise ConfigError("--runs and --centre exclude each other")
    if folder is None and wanted.centre is None:
        if run is not None and Path(run).is_dir():
            folder, run = Path(run), None
        elif not (Path(os.environ.get(CENTRE) or ".") / "centre.toml").is_file() and _SIMULATED.is_dir():
            folder = _SIMULATED
    if folder is None:
        centre = CentreFolder.find(wanted.centre)
        shown = Runs.of_centre(centre)
        return centre, shown, shown.find(run).key if run else ""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", fix="name the folder that holds runs")
    shown = Runs.of_folder(folder)
    alone = shown.list() if (folder / "ledger.sqlite").is_file() else []
    return None, shown, shown.find(run).key if run else alone[0].key if len(alone) == 1 else ""


def _tls(wanted: Wanted, settings: MonitorSettings, centre: CentreFolder | None, outside: bool) -> Tls | None:
    """Return the certificate to use: the one named, or away from loopback the centre's."""
    certificate = wanted.certificate or (Path(settings.certificate) if settings.certificate else None)
    key = wanted.key or (Path(settings.key) if settings.key else None)
    if (certificate is None) != (key is None):
        raise ConfigError("a certificate and its private key belong together", fix="name both or neither")
    if certificate is None or key is None:
        if not outside or centre is None or not centre.key("server.crt").is_file():
            return None
        certificate, key = centre.key("server.crt"), centre.key("server.key")
    try:
        check_dates(certificate.read_bytes(), certificate.name, fix="renew it")
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, _no_password)
    except OSError as error:  # ssl.SSLError among them
        raise CredentialError(
            "the monitor's certificate and private key cannot be used",
            found=f"{certificate.name} and {key.name}: {error.strerror or type(error).__name__}",
            fix="name a PEM certificate and the PEM key that belongs to it, without a password",
        ) from None
    return Tls(certificate, key)


def _no_password() -> str:
    """Answer OpenSSL, which would ask on the terminal."""
    return ""


def _may_be_outside(listener: socket, tls: Tls | None, users: Users) -> None:
    host, port = listener.getsockname()[:2]
    missing = []
    if tls is None:
        missing.append("a certificate: --certificate FILE --key FILE")
    if not users.hashes():
        missing.append(f"a user: {_give_a_password(users)}")
    if missing:
        raise DeploymentError(
            "away from loopback the monitor needs TLS and a login",
            found=f"{host}:{port}, which other machines can reach",
            fix="; ".join(missing) + "; or listen on 127.0.0.1 and reach it through ssh -L",
        )


def _give_a_password(users: Users) -> str:
    where = "" if users.file is not None else " with --config FILE, which the monitor is given too"
    return f"fedcxr-server password NAME{where}"


def _alerts(runs: Runs, table: dict[str, Any], file: Path | None, centre: str) -> AlertLoop | None:
    if not table or file is None:
        return None
    from server.monitor.alerts.loop import make_loop

    return make_loop(runs, table, file.resolve().parent, centre, file.name)


def _names(listen: str, settings: MonitorSettings, tls: Tls | None) -> frozenset[str]:
    bound = listen.rpartition(":")[0].strip("[]").lower()
    certified = hosts_in(tls.certificate.read_bytes()) if tls else ()
    return frozenset(name.lower() for name in (*settings.names, *certified, bound) if name)


def _start_health(ready: Ready, beside: ExitStack, say: Callable[[str], None]) -> None:
    address = ready.monitor.settings.health
    if not address:
        return
    from server.monitor import health
    from server.monitor.healthz import checks_of

    tls = health.Tls(ready.tls.certificate, ready.tls.key) if ready.tls else None
    service = health.HealthService(address, checks_of(ready.monitor), tls)
    service.start()
    beside.callback(service.stop)
    say(f"Health (gRPC): {address}")


def _start_alerts(ready: Ready, beside: ExitStack, say: Callable[[str], None]) -> None:
    if ready.loop is None:
        return
    ready.loop.start()
    beside.callback(ready.loop.stop)
    say("Alerts: on")
