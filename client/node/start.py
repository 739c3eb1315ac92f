"""Run a site's processes: the worker, the node, and Flower's executor beside it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.gate.approval import Approval, current_approval
from client.join.joining import Welcome, load_welcome
from client.node.answers import KeptAnswers
from client.node.outbox import Outbox
from client.node.relay import ping
from client.node.standing import ACTIVE, EVENT, REVOKED, SECRET, UNKNOWN, UNSAFE, in_words, read_state
from client.place import SiteFolder
from client.site import SiteConfig, load_site
from common.errors import CredentialError, DeploymentError, FedcxrError, WorkerError
from common.files import write_atomic
from common.supervise import Child, Supervisor, command, flower_environment

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


def site_status(folder: SiteFolder) -> dict[str, Any]:
    """Say how a site stands; nothing in it is about a patient."""
    pid, state = running_pid(folder), read_state(folder)
    try:
        welcome = load_welcome(folder)
        centre: dict[str, Any] = {"name": welcome.centre, "address": welcome.address}
    except FedcxrError as error:
        centre = {"problem": error.problem}
    try:
        approval = current_approval(folder)
        approved: dict[str, Any] = {"fab": approval.fab, "by": approval.by, "when": approval.when}
    except FedcxrError as error:
        approved = {"problem": error.problem}
    entries = Outbox(folder.outbox, tidy=False).entries()
    waiting = [{**entry.facts.get("about", {}), "state": entry.state} for entry in entries]
    kept = KeptAnswers(folder.outbox / "updates").waiting()
    return {
        "folder": str(folder.root),
        "running": pid,
        "connected": bool(pid and state.connected),
        "since": state.since,
        "problem": state.problem,
        "centre": centre,
        "approved": approved,
        "processes": _processes(folder) if pid else {},
        "worker": _worker(folder) if pid else "",
        "last-instruction": state.last_instruction,
        "last-answer": state.last_answer,
        "waiting": waiting,
        "kept-updates": [{"plan": plan, "round": number, "bytes": size} for plan, number, size in kept],
        "disk-free": shutil.disk_usage(folder.root).free,
    }


def status_lines(status: dict[str, Any]) -> list[str]:
    """Say a status in words."""
    pid = status["running"]
    centre, approved = status["centre"], status["approved"]
    link = "connected" if status["connected"] else "not connected"
    lines = [
        f"running:   {f'yes, process {pid}' if pid else 'no; fedcxr-site start'}",
        f"centre:    {centre.get('problem') or centre['name'] + ' at ' + centre['address']}"
        + (f", {link} since {_moment(status['since'])}" if pid and status["since"] else ""),
        f"approved:  {approved.get('problem') or 'bundle ' + approved['fab'][:12] + ' by ' + approved['by']}",
    ]
    if pid and status["problem"]:
        lines.append(f"problem:   {status['problem']}")
    for name, facts in status["processes"].items():
        state = f"process {facts['pid']}" if facts["pid"] else "waits to be started again"
        lines.append(f"{name + ':':<10} {state}, {facts['restarts']} restarts")
    if pid:
        lines.append(f"working:   {status['worker'] or 'on nothing'}")
    asked, answered = status["last-instruction"], status["last-answer"]
    lines.append(f"asked:     {_last(asked)}")
    code = f", {answered['code']}" if answered.get("code") else ""
    lines.append(f"answered:  {_last(answered)}{code}")
    waiting = ", ".join(f"{in_words(entry)}: {entry['state']}" for entry in status["waiting"])
    lines.append(f"outbox:    {waiting or 'nothing waits'}")
    kept = status["kept-updates"]
    size = sum(update["bytes"] for update in kept) / 1e6
    lines.append(f"kept:      {len(kept)} updates, {size:.1f} MB, until their rounds are committed")
    lines.append(f"disk:      {status['disk-free'] / 1e9:.1f} GB free")
    return lines


def _children(folder: SiteFolder, site: SiteConfig) -> list[Child]:
    """Return the three processes; the two ends of the Runtime API get a fresh port and secret."""
    port, secret = _free_port(), folder.outbox.with_name(SECRET)
    write_atomic(secret, secrets.token_hex(32).encode())
    environment = flower_environment(folder.flower_home)
    folder.flower_home.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(site.device.threads)} if site.device.threads else {}
    # -P: what happens to lie in the working folder is not imported.
    module = (sys.executable, "-P", "-m")
    return [
        Child("worker", (*module, "client.node.resident", str(folder.root)), {**environment, **threads}),
        Child(
            "supernode",
            (*module, "client.node.supernode", str(folder.root), str(port)),
            environment,
            wait_after=WAITS,
        ),
        Child(
            "superexec",
            (
                command("flower-superexec"),
                "--insecure",
                f"--runtime-api-address=127.0.0.1:{port}",
                f"--superexec-auth-secret-file={secret}",
            ),
            environment,
        ),
    ]


def _listener(say: Say) -> Callable[[str, str], None]:
    def listen(name: str, line: str) -> None:
        if name == "supernode" and line.startswith(EVENT):
            say(_stamped(line.removeprefix(EVENT)))

    return listen


def _stamped(line: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _last(facts: dict[str, Any]) -> str:
    return f"{in_words(facts)}, {_moment(facts['time'])}" if facts else "nothing yet"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _processes(folder: SiteFolder) -> dict[str, Any]:
    try:
        return dict(json.loads((folder.logs / "processes.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def _worker(folder: SiteFolder) -> str:
    try:
        doing = ping(folder.worker_socket, timeout=2)
    except WorkerError:
        return "it does not answer"
    return f"{doing['busy']} since {_moment(doing['since'])}" if doing["busy"] else ""


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
