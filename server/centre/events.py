"""What happens at the centre's door, one JSON line each, for ``status`` and for whoever looks later.

Fields are an allow-list: a time, a kind, a site, a run, a round, a route and a count; never a header
or a body.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Kind = Literal["connected", "disconnected", "revoked", "replaced", "late", "refused", "clock", "disk-full"]

MOST_BYTES = 8_000_000
"""Size at which the file is renamed to ``events.1.jsonl`` and a new one begun."""
QUIET_SECONDS = 60.0
"""The same kind about the same site is written at most once in this time, and counted."""

log = logging.getLogger("fedcxr.centre")


class Events:
    """Appends to ``events.jsonl``; safe from several threads."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "events.jsonl"
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[tuple[str, ...], float] = {}
        self._held: dict[tuple[str, ...], int] = {}

    def add(
        self, kind: Kind, words: str, *, site: str = "", run: str = "", group: str = "", route: str = ""
    ) -> bool:
        """Write one event and log ``words``; repeats within a minute are only counted.

        A late answer counts as a repeat only for the same run and round. Returns whether it was written.
        """
        now = self._clock()
        key = (kind, site, run, group, route)
        with self._lock:
            if now - self._last.get(key, -QUIET_SECONDS) < QUIET_SECONDS and kind not in _ALWAYS:
                self._held[key] = self._held.get(key, 0) + 1
                return False
            self._last[key] = now
            count = 1 + self._held.pop(key, 0)
            self._forget(now)
            line: dict[str, Any] = {"time": round(now, 3), "kind": kind, "site": site, "run": run}
            line |= {"group": group, "route": route, "count": count}
            log.log(logging.INFO if kind in _ALWAYS else logging.WARNING, "%s", words)
            self._append(json.dumps({name: value for name, value in line.items() if value != ""}))
        return True

    def _forget(self, now: float) -> None:
        if len(self._last) > 1000:
            self._last = {key: when for key, when in self._last.items() if now - when < QUIET_SECONDS}
            self._held = {key: count for key, count in self._held.items() if key in self._last}

    def _append(self, line: str) -> None:
        try:
            if self.path.exists() and self.path.stat().st_size > MOST_BYTES:
                self.path.replace(self.path.with_name("events.1.jsonl"))
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            # A full disk must not stop the centre from saying so in its log.
            log.warning("the events file cannot be written: %s", error.strerror)


_ALWAYS = ("connected", "disconnected", "revoked", "replaced")


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a logs folder, oldest first; a line cut short by a crash is left out."""
    for name in ("events.1.jsonl", "events.jsonl"):
        path = folder / name
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
