"""Where a running node stands, for its operator: a line for each event, and ``state.json``."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from client.place import SiteFolder
from common.errors import FedcxrError
from common.files import write_atomic

EVENT = "event: "
"""How a line for the operator begins in supernode.log."""
REVOKED, UNKNOWN, ACTIVE, UNSAFE, FAILED = 77, 76, 75, 74, 73
"""Exit codes of the node: not let in, no longer known, another one is active, the certificate does
not fit, anything else."""
_KNOWN = (403, 412)
"""HTTP statuses that are part of the work: a run that is over, a node that is still active."""
_log = logging.getLogger(__name__)


@dataclass
class State:
    """What ``fedcxr-site status`` shows of the node."""

    connected: bool = False
    since: float = 0.0
    node: int | None = None
    last_instruction: dict[str, Any] = field(default_factory=dict)
    last_answer: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class Standing:
    """Keeps the state, says what changes, and knows why the process ends."""

    def __init__(self, folder: SiteFolder, centre: str, say: Callable[[str], None] | None = None) -> None:
        self._file = state_file(folder)
        self._open = self._file.with_name("open.json")
        self._centre = centre
        self._say = say or (lambda line: _log.info("%s%s", EVENT, line))
        self._lock = threading.RLock()
        before = read_state(folder)
        self.state = State(last_instruction=before.last_instruction, last_answer=before.last_answer)
        self.exit_code = FAILED
        self._waiting = False
        self._write()

    def say(self, line: str) -> None:
        """Tell the operator."""
        self._say(line)

    def connected(self, node: int) -> None:
        """Note that the centre has taken this node in."""
        with self._lock, suppress(OSError):
            write_atomic(self._open, json.dumps({"node": str(node), "machine": platform.node()}).encode())
        self._set(connected=True, since=time.time(), node=node, problem="")
        self._say(f"connected to {self._centre}")

    def closed(self) -> None:
        """Note that the connection was closed as it should be."""
        self._open.unlink(missing_ok=True)
        self._set(connected=False, since=time.time())

    def left_open(self) -> int | None:
        """Return the node that a dead process of this site, on this machine, left connected."""
        try:
            left = json.loads(self._open.read_bytes())
            return int(left["node"]) if left["machine"] == platform.node() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def lost(self, error: Exception) -> None:
        """Note that a request did not reach the centre."""
        if "certificate" in str(error).lower():
            self.exit_code = UNSAFE
            self._problem(f"the centre's certificate does not fit the welcome ({error})")
            return
        if self.state.connected or not self.state.problem:
            self._problem(f"no connection to {self._centre} ({error or type(error).__name__})")

    def heard(self, status: int, method: str) -> None:
        """Note an answer of the centre's, by its HTTP status."""
        if status == 401:
            self.exit_code = REVOKED
            self._problem(
                "the centre does not know this site's key: it was revoked, or this machine's clock is wrong"
            )
        elif status == 503:
            if not self._waiting:
                self._waiting = True
                self._say("the centre asks to wait (503); this is tried again by itself")
        elif status >= 400 and status not in _KNOWN:
            self._say(f"the centre answered {method} with HTTP {status}")
        elif status < 400:
            self._waiting = False
            if not self.state.connected and self.state.node is not None:
                self._set(connected=True, since=time.time(), problem="")
                self._say(f"connection to {self._centre} is back")

    def unknown(self) -> None:
        """Note that the centre no longer knows this node; the process starts anew."""
        self.exit_code = UNKNOWN
        self._problem("the centre no longer knows this node; connecting anew")
        os.kill(os.getpid(), signal.SIGTERM)

    def refused_entry(self) -> None:
        """Note that the centre holds another connection of this site's."""
        self.exit_code = ACTIVE
        self._problem("the centre still holds another connection of this site; trying again until it is gone")

    def fault(self, error: Exception) -> None:
        """Note what ends the node's loop."""
        words = str(error) if isinstance(error, FedcxrError) else f"a fault of ours: {type(error).__name__}"
        if not isinstance(error, httpx.HTTPError):  # else it was said when it happened
            self._problem(words)

    def asked(self, about: dict[str, Any]) -> None:
        """Note an instruction that was accepted."""
        self._set(last_instruction={**about, "time": time.time()})
        self._say(f"asked for {in_words(about)}")

    def answered(self, about: dict[str, Any], code: str, size: int) -> None:
        """Note an answer that has left."""
        self._set(last_answer={**about, "code": code, "bytes": size, "time": time.time()})
        what = in_words(about)
        self._say(f"refused {what} with {code}" if code else f"answered {what} ({size:,} bytes)")

    def _problem(self, words: str) -> None:
        if words != self.state.problem:
            self._say(words)
        self._set(connected=False, since=time.time(), problem=words)

    def _set(self, **facts: Any) -> None:
        with self._lock:
            for name, value in facts.items():
                setattr(self.state, name, value)
            self._write()

    def _write(self) -> None:
        """Put the state in place whole, but not flushed to disk: a round does not wait for its status."""
        new = self._file.with_name(f".{self._file.name}.new")
        with self._lock, suppress(OSError):
            new.parent.mkdir(parents=True, exist_ok=True)
            new.touch(mode=0o600)
            new.write_bytes(json.dumps(asdict(self.state)).encode())
            new.replace(self._file)


def state_file(folder: SiteFolder) -> Path:
    """Return where the state is written."""
    return folder.outbox.with_name("state.json")


def read_state(folder: SiteFolder) -> State:
    """Read what the node last wrote; nothing known if it never ran."""
    try:
        return State(**json.loads(state_file(folder).read_bytes()))
    except (OSError, ValueError, TypeError):
        return State()


def in_words(about: dict[str, Any]) -> str:
    """Say what was asked.

    >>> in_words({"stage": "train", "round": 3, "run": "7"})
    'train, round 3 (run 7)'
    """
    stage = str(about.get("stage") or "something unknown")
    details = f", round {about['round']}" if about.get("round") else ""
    details += f", {about['arm']} on {about['split']}" if about.get("arm") else ""
    return f"{stage}{details}" + (f" (run {about['run']})" if about.get("run") else "")
