"""The ledger: one SQLite file per run with what happened, for the report, the monitor and people."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.disk import with_room

SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sites (site TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evaluations (
    arm TEXT NOT NULL, split TEXT NOT NULL, site TEXT NOT NULL, metrics TEXT NOT NULL,
    PRIMARY KEY (arm, split, site)
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL,
    round INTEGER, site TEXT, text TEXT NOT NULL, facts TEXT NOT NULL
);
"""

_PUT_ROUND = "INSERT OR REPLACE INTO rounds VALUES (?, ?)"


@dataclass(frozen=True)
class Event:
    """One thing that happened, in a sentence and in facts."""

    id: int
    time: float
    kind: str
    round: int | None
    site: str | None
    text: str
    facts: dict[str, Any]


class Ledger:
    """Append facts, read them back; safe to read from another thread or process meanwhile.

    ``patience`` is how many seconds a write waits for room on a full disk.
    """

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        self.patience = patience
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        with_room(self._prepare, "the ledger", patience)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)
        if self.get("schema") is None:  # who only reads must not need room on the disk
            self.put("schema", SCHEMA_VERSION)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with_room(lambda: self._db.execute(statement, values), "the ledger", self.patience)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def put(self, key: str, value: object) -> None:
        """Set a fact about the run."""
        self._write("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, json.dumps(value)))

    def get(self, key: str) -> Any:
        """Return a fact about the run, or None."""
        row = self._db.execute("SELECT value FROM run WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put_site(self, site: str, facts: Mapping[str, Any]) -> None:
        """Set what a site enrolled with."""
        self._write("INSERT OR REPLACE INTO sites VALUES (?, ?)", (site, json.dumps(facts)))

    def sites(self) -> dict[str, dict[str, Any]]:
        """Return site -> what it enrolled with, in name order."""
        rows = self._db.execute("SELECT site, facts FROM sites ORDER BY site")
        return {site: json.loads(facts) for site, facts in rows}

    def put_round(self, record: Mapping[str, Any]) -> None:
        """Set the record of a round."""
        self._write(_PUT_ROUND, (record["round"], json.dumps(record)))

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds' records in order."""
        rows = self._db.execute("SELECT record FROM rounds ORDER BY round")
        return [json.loads(record) for (record,) in rows]

    def reset_rounds(self, records: list[dict[str, Any]]) -> None:
        """Make the rounds exactly those that are committed on disk."""
        with_room(lambda: self._reset_rounds(records), "the ledger", self.patience)

    def _reset_rounds(self, records: list[dict[str, Any]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("DELETE FROM rounds")
            for record in records:
                self._db.execute(_PUT_ROUND, (record["round"], json.dumps(record)))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite may have rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    def put_evaluation(self, arm: str, split: str, site: str, metrics: Mapping[str, Any]) -> None:
        """Set what one site measured of one model."""
        values = (arm, split, site, json.dumps(metrics))
        self._write("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", values)

    def evaluations(self, split: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return arm -> site -> metrics as they came over the wire."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        query = "SELECT arm, site, metrics FROM evaluations WHERE split = ? ORDER BY rowid"
        for arm, site, metrics in self._db.execute(query, (split,)):
            found.setdefault(arm, {})[site] = json.loads(metrics)
        return found

    def event(
        self, kind: str, text: str, *, round: int | None = None, site: str | None = None, **facts: Any
    ) -> None:
        """Append an event."""
        self._write(
            "INSERT INTO events (time, kind, round, site, text, facts) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), kind, round, site, text, json.dumps(facts)),
        )

    def reserve(self, key: str, count: int) -> int:
        """Return the first of ``count`` numbers that no earlier call got, also after a crash."""
        first = int(self.get(key) or 0) + 1
        self.put(key, first + count - 1)
        return first

    def events(self, after: int = 0) -> Iterator[Event]:
        """Yield events with an id above ``after``."""
        query = "SELECT * FROM events WHERE id > ? ORDER BY id"
        for number, moment, kind, round, site, text, facts in self._db.execute(query, (after,)).fetchall():
            yield Event(number, moment, kind, round, site, text, json.loads(facts))
