"""Run a site's processes: the worker and the node."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client.gate.approval import Approval, current_approval
from client.join.joining import Welcome, load_welcome
from client.node.standing import ACTIVE, EVENT, REVOKED, UNKNOWN, UNSAFE
from client.place import SiteFolder
from client.site import SiteConfig, load_site
from common.errors import CredentialError, DeploymentError
from common.supervise import Child, Supervisor, flower_environment

WAITS = {REVOKED: 30.0, UNKNOWN: 1.0, ACTIVE: 10.0, UNSAFE: 30.0}
"""Exit code of the node -> seconds until it is tried again."""
STOPPING = 45.0
"""Seconds a running site may take to stop."""

Say = Callable[[str], None]


def check_ready(folder: SiteFolder) -> tuple[SiteConfig, Welcome, Approval]:
    """Return settings, centre and approval of a site that may start.

    Raises:
        FedcxrError: if one of them is missing or damaged, or they do not belong together.
    """
    site, welcome = load_site(folder.settings), load_welcome(folder)
    if site.name != welcome.site:
        raise CredentialError(
            "site.toml and the centre's welcome name different sites",
            found=f"{site.name!r} and {welcome.site!r}",
            fix=f'set name = "{welcome.site}" in site.toml',
        )
    return site, welcome, current_approval(folder)


def run_site(folder: SiteFolder, say: Say) -> int:
    """Run a site until it is asked to stop, with a line for everything that happens.

    Raises:
        DeploymentError: if it runs already.
        FedcxrError: if it may not start; see `check_ready`.
    """
    site, welcome, approval = check_ready(folder)
    os.umask(0o077)
    with _only_one(folder):
        say(f"site:     {site.name} in {folder.root}")
        say(f"centre:   {welcome.centre} at {welcome.address}")
        say(f"approved: bundle {approval.fab[:12]} by {approval.by}, {approval.when}")
        say(f"logs:     {folder.logs}")
        children = _children(folder, site)
        code = Supervisor(children, folder.logs, lambda line: say(_stamped(line)), _listener(say)).run()
        say(_stamped("stopped"))
        return code


def running_pid(folder: SiteFolder) -> int | None:
    """Return the process that runs this site, if one does."""
    try:
        descriptor = os.open(_lock_file(folder), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 20).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(descriptor)


def stop_site(folder: SiteFolder, patience: float = STOPPING) -> bool:
    """Stop a running site and wait until it has; False if none runs.

    Raises:
        DeploymentError: if it does not stop.
    """
    pid = running_pid(folder)
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while running_pid(folder) is not None:
        if time.monotonic() >= deadline:
            raise DeploymentError("the running site does not stop", found=f"process {pid}")
        time.sleep(0.1)
    return True


def _children(folder: SiteFolder, site: SiteConfig) -> list[Child]:
    """Return the two processes."""
    environment = flower_environment(folder.flower_home)
    folder.flower_home.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(site.device.threads)} if site.device.threads else {}
    # -P: what happens to lie in the working folder is not imported.
    module = (sys.executable, "-P", "-m")
    return [
        Child("worker", (*module, "client.node.resident", str(folder.root)), {**environment, **threads}),
        Child(
            "supernode",
            (*module, "client.node.supernode", str(folder.root)),
            environment,
            wait_after=WAITS,
        ),
    ]


def _listener(say: Say) -> Callable[[str, str], None]:
    def listen(name: str, line: str) -> None:
        if name == "supernode" and line.startswith(EVENT):
            say(_stamped(line.removeprefix(EVENT)))

    return listen


def _stamped(line: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}"


def _lock_file(folder: SiteFolder) -> Path:
    return folder.outbox.with_name("lock")


@contextmanager
def _only_one(folder: SiteFolder) -> Iterator[None]:
    """Hold the site's lock; a process that dies lets go of it."""
    file = _lock_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeploymentError(
                "this site runs already",
                found=f"process {os.read(descriptor, 20).decode(errors='replace')}",
                fix="fedcxr-site status; stop it with Ctrl-C where it runs, or: systemctl stop",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
