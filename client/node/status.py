"""How a site stands: what ``fedcxr-site status`` says, which is nothing about a patient."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

from client.gate.approval import current_approval
from client.join.joining import load_welcome
from client.node.answers import KeptAnswers
from client.node.outbox import Outbox
from client.node.relay import ping
from client.node.standing import in_words, read_state
from client.node.start import running_pid
from client.place import SiteFolder
from common.errors import FedcxrError, WorkerError


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


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _last(facts: dict[str, Any]) -> str:
    return f"{in_words(facts)}, {_moment(facts['time'])}" if facts else "nothing yet"


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
