"""The ledger: one SQLite file per run with what happened, for the report, the monitor and people."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.disk import with_room
from server.measures import Measure, from_record, of_validation

SCHEMA_VERSION = 2
"""2: numbers behind curves lie in ``measures`` and ``details``; 1: only in the rounds' records."""

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
_SERIES = """
CREATE TABLE IF NOT EXISTS measures (
    name TEXT NOT NULL, finding TEXT NOT NULL, site TEXT NOT NULL, round INTEGER NOT NULL,
    value REAL NOT NULL, PRIMARY KEY (name, finding, round, site)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS details (
    name TEXT NOT NULL, round INTEGER NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name, round)
) WITHOUT ROWID;
"""
# A curve is one stretch of the measures, and a round's rows of it lie side by side: with the site
# before the round every row of a commit would be on a page of its own.

_PUT_ROUND = "INSERT OR REPLACE INTO rounds VALUES (?, ?)"
_PUT_MEASURE = "INSERT OR REPLACE INTO measures (name, finding, site, round, value) VALUES (?, ?, ?, ?, ?)"
_PUT_DETAIL = "INSERT OR REPLACE INTO details VALUES (?, ?, ?)"
_OF_NO_ROUND = "arm = 'pooled' OR arm = 'local' OR arm LIKE 'local:%'"
"""Evaluations of models that no round made."""


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

    ``patience`` is how many seconds a write waits for room on a full disk; ``clock`` tells the time
    of events. A ledger of schema 1 becomes one of schema 2 with the first write that needs it.
    """

    def __init__(self, path: Path, patience: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        self.patience = patience
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        with_room(self._prepare, "the ledger", patience)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)
        if self.get("schema") is None:  # who only reads must not need room on the disk
            self._make_series()

    def _make_series(self) -> None:
        """Make the tables of schema 2."""
        self._db.executescript(_SERIES)
        self.put("schema", SCHEMA_VERSION)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make several writes one: all are seen at once, or none was made."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite may have rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    def _all_or_nothing(self, write: Callable[[], object]) -> None:
        """Carry out several writes as one, again and again while there is no room for them."""

        def attempt() -> None:
            if int(self.get("schema") or 0) < SCHEMA_VERSION:
                self._make_series()
            with self.together():
                write()

        with_room(attempt, "the ledger", self.patience)

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

    def put_round(
        self,
        record: Mapping[str, Any],
        measures: Iterable[Measure] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the record of a round, with the numbers behind it, in one transaction."""
        rows, number = [*measures], record["round"]

        def write() -> None:
            self._db.execute(_PUT_ROUND, (number, json.dumps(record)))
            self.put_measures(rows)
            for name, value in (details or {}).items():
                self._db.execute(_PUT_DETAIL, (name, number, json.dumps(value)))

        self._all_or_nothing(write)

    def put_measures(self, rows: Iterable[Measure]) -> None:
        """Set numbers of rounds, all of them or none."""
        rows = [*rows]
        self._all_or_nothing(lambda: self._db.executemany(_PUT_MEASURE, rows))

    def put_detail(self, name: str, round: int, value: object) -> None:
        """Set an array of a round, as JSON."""
        row = (name, round, json.dumps(value))
        self._all_or_nothing(lambda: self._db.execute(_PUT_DETAIL, row))

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds' records in order."""
        rows = self._db.execute("SELECT record FROM rounds ORDER BY round")
        return [json.loads(record) for (record,) in rows]

    def reset_rounds(self, records: list[dict[str, Any]]) -> None:
        """Make the rounds exactly those that are committed on disk; what came of later ones goes too.

        A round that was committed, but whose numbers a crash kept from being written, gets those
        that its record tells.
        """
        self._all_or_nothing(lambda: self._reset_rounds(records))

    def _reset_rounds(self, records: list[dict[str, Any]]) -> None:
        kept = [record["round"] for record in records]
        last = max(kept, default=0)
        (before,) = self._db.execute("SELECT coalesce(max(round), 0) FROM rounds").fetchone()
        self._db.execute("DELETE FROM rounds")
        for record in records:
            self._db.execute(_PUT_ROUND, (record["round"], json.dumps(record)))
        self._db.execute("DELETE FROM measures WHERE round > ?", (last,))
        self._db.execute("DELETE FROM details WHERE round > ?", (last,))
        if before > last:  # measured of an adapter that is no longer there
            self._db.execute(f"DELETE FROM evaluations WHERE NOT ({_OF_NO_ROUND})")
        told = "SELECT round FROM measures WHERE name = 'seconds' AND finding = '' AND site = ''"
        numbered = {number for (number,) in self._db.execute(told)}
        untold = [row for r in records if r["round"] not in numbered for row in from_record(r)]
        self._db.executemany(_PUT_MEASURE, untold)
        self.put("generation", int(self.get("generation") or 0) + 1)

    def put_evaluation(self, arm: str, split: str, site: str, metrics: Mapping[str, Any]) -> None:
        """Set what one site measured of one model.

        The validation of the federated one says how the adapter is after the last round: every
        earlier round's comes with the answers of the next.
        """
        row = (arm, split, site, json.dumps(metrics))

        def write() -> None:
            self._db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", row)
            if (arm, split) == ("federated", "validation"):
                (last,) = self._db.execute("SELECT coalesce(max(round), 0) FROM rounds").fetchone()
                self.put_measures(of_validation(site, last, metrics))

        self._all_or_nothing(write)

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
            (self._clock(), kind, round, site, text, json.dumps(facts)),
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
