"""The centre as one process tree: the SuperLink behind its gateway, what starts ServerApps, the monitor."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable

from common.errors import ConfigError, DeploymentError
from common.files import write_atomic
from common.supervise import Child, Supervisor, command, flower_environment
from server.centre.bundle import build_bundle
from server.centre.certificates import days_left, valid_until
from server.centre.folder import CENTRE, CentreFolder
from server.centre.instance import only_one
from server.centre.provision import centre_fingerprint
from server.centre.registry import Registry

_WARNING = re.compile(r"(\S+ \S+?),\d+ (?:WARNING|ERROR) fedcxr\S* (.*)")
_FAULT = re.compile(r"E_[A-Z_]+  .*| +(?:found|fix): +.*")
"""An error of ours, as a process of ours ends with it."""
_ADDRESS = re.compile(r"(?:Monitor|Health \(gRPC\)|Alerts): .*")
"""What the monitor says once it serves."""
_RENEW_BEFORE = 30
"""Days before the certificate's end at which it is said that it should be renewed."""
_SETTINGS_WAIT = 300.0
"""Seconds until the monitor is tried again after it said what is wrong with its settings or address."""
_NOT_OURS = ("FEDCXR_RUN", "FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API")
"""Variables of somebody's shell that would change what the centre's processes do."""


def children(centre: CentreFolder, monitor: bool = False) -> list[Child]:
    """Return the centre's processes in the order they start, the ``monitor`` last if it is wanted."""
    environment = {
        **flower_environment(centre.flower_home),
        CENTRE: str(centre.root),
        "HF_HUB_OFFLINE": "1",
    }
    # -P: a folder called server where somebody happens to stand must not be taken for ours.
    superlink = (sys.executable, "-P", "-m", "server.centre.superlink", str(centre.root))
    superexec = (
        command("flower-superexec"),
        "--runtime-api-address",
        centre.config().admin,
        "--root-certificates",
        str(centre.key("ca.crt")),
        "--superexec-auth-secret-file",
        str(centre.key("superexec.secret")),
    )
    found = [Child("superlink", superlink, environment), Child("superexec", superexec, environment)]
    if monitor:
        watch = (sys.executable, "-P", "-m", "server.cli", "monitor", "--centre", str(centre.root))
        # What stops the monitor stops nobody else: a port that is taken, a wrong setting.
        wait = dict.fromkeys((ConfigError.exit_code, DeploymentError.exit_code), _SETTINGS_WAIT)
        found.append(Child("monitor", watch, {"PYTHONUNBUFFERED": "1"}, wait))
    return found


def start_centre(centre: CentreFolder, say: Callable[[str], None], monitor: bool = True) -> int:
    """Run the centre until SIGTERM or SIGINT; ``monitor = False`` leaves its page away.

    Raises:
        DeploymentError: if it runs already.
        CredentialError: if a key or certificate is missing or over.
    """
    with only_one(centre):
        config = centre.config()
        certificate = centre.key("server.crt").read_bytes()
        until = valid_until(certificate)
        say(f"Centre {config.name}: sites dial {config.address}")
        say(f"  bound to {config.listen} for sites, {config.admin} for this machine alone")
        say(f"  fingerprint {centre_fingerprint(centre)}")
        say(f"  certificate until {until:%Y-%m-%d}, {days_left(certificate):.0f} days left")
        if days_left(certificate) < _RENEW_BEFORE:
            say("  renew it: fedcxr-server renew (sites need nothing new)")
        say(f"  {_who(centre)}")
        write_atomic(centre.bundle, build_bundle(), 0o644)
        for name in _NOT_OURS:
            os.environ.pop(name, None)
        say(f"Logs in {centre.logs}. Stop with Ctrl-C or SIGTERM.")
        watched = monitor and config.monitor.get("enabled", True) is not False
        code = Supervisor(children(centre, watched), centre.logs, say, _warnings(say)).run()
        say("Stopped. Runs that were under way can be resumed: fedcxr-server resume")
        return code


def _warnings(say: Callable[[str], None]) -> Callable[[str, str], None]:
    """Pass on what the SuperLink warns of (a full disk, a site's clock), and where the monitor is.

    Why one of them ended is passed on too; the monitor's reason once, however often it is tried again.
    """
    told: set[str] = set()

    def listen(name: str, line: str) -> None:
        if name == "superlink":
            if found := _WARNING.match(line):
                say(f"{found[1]}  {found[2]}")
            elif _FAULT.fullmatch(line):
                say(line)
        elif name == "monitor":
            if _ADDRESS.match(line):
                told.clear()
                say(line)
            elif _FAULT.fullmatch(line) and line not in told:
                told.add(line)
                say(f"monitor: {line}" if line.startswith("E_") else line)

    return listen


def _who(centre: CentreFolder) -> str:
    with contextlib.closing(Registry(centre.registry)) as registry:
        admitted = [site.name for site in registry.sites() if site.state == "admitted"]
    return f"{len(admitted)} sites admitted: {', '.join(admitted)}" if admitted else "no site is admitted yet"
