"""Answers to a live page: computed once for however many look at the same thing."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request, Response

MOST_BYTES = 32_000_000
"""What all answers kept may take together."""

SAME = 0.15
"""Seconds for which a run whose files are as they were is not looked at again."""
TURN = 5.0
"""Seconds for which it is not, for whoever was told of nothing newer: all watchers of a turn get the same."""

Moment = tuple[str, int, int]
"""A run, its revision, and roughly the time."""

Common = TypeVar("Common")


@dataclass(frozen=True)
class Answer:
    """A body, packed, and the tag that names its content."""

    packed: bytes
    tag: str

    @classmethod
    def of(cls, body: bytes) -> Answer:
        """Pack a body."""
        tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        return cls(gzip.compress(body, compresslevel=5, mtime=0), tag)


class Answers:
    """Keeps the answers used last; whoever asks for one that is being made waits for it."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most = most
        self.size = 0
        self.made = 0
        """How many answers were computed."""
        self._kept: OrderedDict[Hashable, bytes | Answer] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._moments: dict[Hashable, tuple[object, float, Moment]] = {}
        self._looking = threading.Lock()
        self._common: dict[Hashable, tuple[Moment, Any]] = {}
        self._gathering = threading.Lock()

    def ready(self, key: Hashable) -> bytes | Answer | None:
        """Return the answer of a key if it is kept."""
        with self._lock:
            return self._kept.get(key)

    def get(self, key: Hashable, make: Callable[[], bytes | Answer]) -> bytes | Answer:
        """Return the answer of a key, made by ``make`` if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            mine = self._making.setdefault(key, threading.Lock())
        with mine:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                found = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            self._keep(key, found)
            return found

    def lately(self, key: Hashable, stamp: object, look: Callable[[], Moment]) -> Moment:
        """Return what ``look`` found at the same stamp within the last ``SAME`` seconds, or look again.

        Watchers ask all at once when something has changed; one look serves them.
        """
        with self._looking:
            known = self._moments.get(key)
            if known is not None and known[0] == stamp and time.monotonic() - known[1] < SAME:
                return known[2]
            found = look()
            self._moments[key] = (stamp, time.monotonic(), found)
            return found

    def of_turn(self, run: str, revision: int | None) -> Moment | None:
        """Return the last look at a run, if it saw this revision or a later one, within `TURN` seconds."""
        known = self._moments.get(run)
        if known is None or revision is None or time.monotonic() - known[1] > TURN:
            return None
        return known[2] if known[2][1] >= revision else None

    def common(self, key: Hashable, moment: Moment, gather: Callable[[], Common]) -> Common:
        """Return what ``gather`` found for the same moment, or let it gather again."""
        with self._gathering:
            known = self._common.get(key)
            if known is None or known[0] != moment:
                known = self._common[key] = (moment, gather())
            found: Common = known[1]
            return found

    def _keep(self, key: Hashable, found: bytes | Answer) -> None:
        with self._lock:
            self.made += 1
            self._kept[key] = found
            self.size += _size(found)
            while self.size > self.most and self._kept:
                _, oldest = self._kept.popitem(last=False)
                self.size -= _size(oldest)


def _size(found: bytes | Answer) -> int:
    return len(found.packed if isinstance(found, Answer) else found) + 500


def as_json(value: Any) -> bytes:
    """Write JSON without spaces; numbers that JSON has no word for are an error.

    Raises:
        ValueError: if a number is not finite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def send(request: Request, answer: Answer) -> Response:
    """Send an answer, or 304 to whoever has it already."""
    headers = {"Cache-Control": "private, no-cache", "ETag": answer.tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == answer.tag:
        return Response(status_code=304, headers=headers)
    body = answer.packed
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        body = gzip.decompress(body)
    return Response(body, media_type="application/json", headers=headers)
