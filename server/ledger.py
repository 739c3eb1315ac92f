"""The ledger: one SQLite file per run with what happened, for the report, the monitor and people."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Append facts, read them back; safe to read from another thread or process meanwhile."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)
        self.put("schema", SCHEMA_VERSION)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def put(self, key: str, value: object) -> None:
        """Set a fact about the run."""
        self._db.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, json.dumps(value)))

    def get(self, key: str) -> Any:
        """Return a fact about the run, or None."""
        row = self._db.execute("SELECT value FROM run WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put_site(self, site: str, facts: Mapping[str, Any]) -> None:
        """Set what a site enrolled with."""
        self._db.execute("INSERT OR REPLACE INTO sites VALUES (?, ?)", (site, json.dumps(facts)))

    def sites(self) -> dict[str, dict[str, Any]]:
        """Return site -> what it enrolled with, in name order."""
        rows = self._db.execute("SELECT site, facts FROM sites ORDER BY site")
        return {site: json.loads(facts) for site, facts in rows}

    def put_round(self, record: Mapping[str, Any]) -> None:
        """Set the record of a round."""
        values = (record["round"], json.dumps(record))
        self._db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?)", values)

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds' records in order."""
        rows = self._db.execute("SELECT record FROM rounds ORDER BY round")
        return [json.loads(record) for (record,) in rows]

    def reset_rounds(self, records: list[dict[str, Any]]) -> None:
        """Make the rounds exactly those that are committed on disk."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("DELETE FROM rounds")
            for record in records:
                self.put_round(record)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def put_evaluation(self, arm: str, split: str, site: str, metrics: Mapping[str, Any]) -> None:
        """Set what one site measured of one model."""
        values = (arm, split, site, json.dumps(metrics))
        self._db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", values)

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
        self._db.execute(
            "INSERT INTO events (time, kind, round, site, text, facts) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), kind, round, site, text, json.dumps(facts)),
        )

    def events(self, after: int = 0) -> Iterator[Event]:
        """Yield events with an id above ``after``."""
        query = "SELECT * FROM events WHERE id > ? ORDER BY id"
        for number, moment, kind, round, site, text, facts in self._db.execute(query, (after,)).fetchall():
            yield Event(number, moment, kind, round, site, text, json.loads(facts))
