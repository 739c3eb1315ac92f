"""Which instruction was handed to which node, and which answer came back, kept across restarts.

Flower deletes an instruction as soon as its answer is collected or its time is over, so its own
tables cannot tell a late answer from one that nobody asked for, nor a second copy of an answer that
has been collected from a new one. This file can. It holds numbers and digests, no content.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEPT_SECONDS = 30 * 24 * 3600.0
"""How long an instruction is remembered after its time is over."""

_TABLES = """
CREATE TABLE IF NOT EXISTS instructions (
    message TEXT PRIMARY KEY, node TEXT NOT NULL, run TEXT NOT NULL, grp TEXT NOT NULL,
    expires REAL NOT NULL, answer TEXT, complete INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS sessions (session TEXT PRIMARY KEY, message TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS instructions_by_run ON instructions (run, node);
"""


@dataclass(frozen=True)
class Given:
    """An instruction that was handed to a node."""

    message: str
    node: int
    run: int
    group: str
    expires: float
    """Seconds since 1970."""
    answer: str = ""
    """Message id of the answer that was taken; empty while there is none."""
    complete: bool = False
    """Whether every part of that answer has arrived."""


class Mailbook:
    """One SQLite file; safe from several threads of one process."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._clock = clock
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLES)
        self._db.execute("DELETE FROM instructions WHERE expires < ?", (clock() - KEPT_SECONDS,))
        self._db.execute("DELETE FROM sessions WHERE message NOT IN (SELECT message FROM instructions)")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def hand(self, given: Given) -> None:
        """Note an instruction handed to a node; a second time changes nothing."""
        self._do(
            "INSERT OR IGNORE INTO instructions (message, node, run, grp, expires) VALUES (?, ?, ?, ?, ?)",
            (given.message, str(given.node), str(given.run), given.group, given.expires),
        )

    def given(self, message: str) -> Given | None:
        """Return the instruction with this message id, or None if it was never handed out."""
        rows = self._ask(
            "SELECT message, node, run, grp, expires, answer, complete FROM instructions WHERE message = ?",
            (message,),
        )
        if not rows:
            return None
        found, node, run, group, expires, answer, complete = rows[0]
        return Given(found, int(node), int(run), group, expires, answer or "", bool(complete))

    def any_given(self, messages: Collection[str], node: int) -> bool:
        """Whether one of these messages is an instruction that was handed to this node."""
        return any((found := self.given(message)) and found.node == node for message in messages)

    def asked(self, run: int, node: int) -> bool:
        """Whether a run has asked this node anything."""
        query = "SELECT 1 FROM instructions WHERE run = ? AND node = ? LIMIT 1"
        return bool(self._ask(query, (str(run), str(node))))

    def take(self, instruction: str, answer: str, session: str, complete: bool) -> None:
        """Note the answer to an instruction, and the session that its parts arrive in."""
        with self._lock, self._db:
            self._db.execute("BEGIN")
            self._db.execute(
                "UPDATE instructions SET answer = ?, complete = ? WHERE message = ?",
                (answer, int(complete), instruction),
            )
            if session:
                values = (session, instruction)
                self._db.execute("INSERT OR REPLACE INTO sessions (session, message) VALUES (?, ?)", values)

    def of_session(self, session: str) -> Given | None:
        """Return the instruction whose answer arrives in this session."""
        rows = self._ask("SELECT message FROM sessions WHERE session = ?", (session,))
        return self.given(rows[0][0]) if rows else None

    def complete(self, instruction: str) -> None:
        """Note that every part of an instruction's answer has arrived."""
        self._do("UPDATE instructions SET complete = 1 WHERE message = ?", (instruction,))

    def _do(self, query: str, values: tuple[object, ...]) -> None:
        with self._lock:
            self._db.execute(query, values)

    def _ask(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()
