"""What a run's ledger holds, for reading only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common.config import RunConfig
from common.errors import ConfigError, RunError
from common.overrides import read_toml
from server.facts.file import LedgerFile, Values
from server.facts.history import History
from server.ledger import SCHEMA_VERSION, Event
from server.measures import Measure

LATE = 2
"""Rounds whose numbers may still come: sites tell of an adapter with the next round they answer."""


class Follower(Protocol):
    """What is learnt from a ledger bit by bit, so that no call reads all of it again."""

    def update(self, view: LedgerView) -> None:
        """Take in what is new."""
        ...


Kept = TypeVar("Kept", bound=Follower)


class LedgerView(LedgerFile):
    """Read a ledger; nothing here can write to it.

    A ledger that is not there yet, or has no tables yet, reads as empty; one of schema 1 reads as what
    its rounds' records tell. The run may go on meanwhile, or go back behind rounds.
    """

    def __init__(self, path: Path) -> None:
        """Open a ledger.

        Raises:
            RunError: if what lies there is no ledger, or one of a later version.
        """
        self._kept: dict[type, Any] = {}
        self._config: tuple[str, RunConfig | None] = ("", None)
        """What was read last, and what it says."""
        super().__init__(path)
        schema = self.get("schema")
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            self.close()
            raise RunError(
                f"the ledger of {path.parent.name} was written by a later version",
                found=f"schema {schema}, this version reads {SCHEMA_VERSION}",
            )

    def forget(self) -> None:
        """Drop what was learnt from a file that is no longer there."""
        self._kept.clear()

    def keep(self, kind: type[Kept]) -> Kept:
        """Return this view's one ``kind``, brought up to date; look at it within ``still`` only."""
        with self._lock:
            found: Kept = self._kept.setdefault(kind, kind())
            found.update(self)
            return found

    def get(self, key: str) -> Any:
        """Return a fact about the run, or None."""
        rows = self.rows("SELECT value FROM run WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def sites(self) -> dict[str, dict[str, Any]]:
        """Return site -> what it enrolled with, in name order."""
        return {site: json.loads(facts) for site, facts in self.rows("SELECT * FROM sites ORDER BY site")}

    def record(self, round: int) -> dict[str, Any] | None:
        """Return the record of a round, or None."""
        rows = self.rows("SELECT record FROM rounds WHERE round = ?", (round,))
        return json.loads(rows[0][0]) if rows else None

    def last_round(self) -> int:
        """Return the newest round that is over; 0 before the first."""
        rows = self.rows("SELECT coalesce(max(round), 0) FROM rounds")
        return int(rows[0][0]) if rows else 0

    def results(self) -> tuple[object, ...]:
        """Return what changes with every round and evaluation, and with nothing else."""
        with self.still():
            return self.last_round(), *self.measured()

    def measured(self) -> tuple[object, ...]:
        """Return what changes with every evaluation and with a rollback, and with nothing else."""
        newest = "SELECT rowid, metrics FROM evaluations ORDER BY rowid DESC LIMIT 1"
        with self.still():
            # Set again, the last one keeps its number: so what it says counts too.
            marks = [*self.rows("SELECT count(*) FROM evaluations"), *map(hash, self.rows(newest))]
            return self.get("generation"), *marks

    def config(self) -> RunConfig | None:
        """Return the run's settings; None where they are not known yet, or this version has others."""
        rows = self.rows("SELECT value FROM run WHERE key = 'config'")
        if not rows:
            return _config(lambda: read_toml(self.path.with_name("plan.toml"))["config"])
        text = rows[0][0]
        if self._config[0] != text:
            self._config = text, _config(lambda: json.loads(text))
        return self._config[1]

    def events(self, after: int = 0, limit: int | None = None, newest_first: bool = False) -> list[Event]:
        """Return events with an id above ``after``, at most ``limit`` of them."""
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT * FROM events WHERE id > ? ORDER BY id {order} LIMIT ?"
        return [*map(_event, self.rows(query, (after, -1 if limit is None else limit)))]

    def events_before(self, before: int | None, limit: int) -> list[Event]:
        """Return the ``limit`` events before one, the newest first; None: the newest of all."""
        query = "SELECT * FROM events WHERE id < ? ORDER BY id DESC LIMIT ?"
        return [*map(_event, self.rows(query, (2**62 if before is None else before, limit)))]

    def series(
        self, name: str, finding: str = "", site: str | None = None, after: int = -1
    ) -> dict[str, list[tuple[int, float]]]:
        """Return site ('' is the federation) -> (round, value) of every round that has one.

        Of one ``site``, or of all; of rounds above ``after``. A ledger of schema 1 has what the rounds'
        records tell.
        """
        query = (
            "SELECT site, round, value FROM measures WHERE name = ? AND finding = ? AND round > ?"
            f"{'' if site is None else ' AND site = ?'} ORDER BY round"
        )
        rows = self.rows(query, (name, finding, after, *(() if site is None else (site,))))
        if not rows:
            told = self._from_records(name, finding)
            rows = [row for row in told if site in (None, row[0]) and row[1] > after]
        found: dict[str, list[tuple[int, float]]] = {}
        for site, number, value in rows:
            if (points := found.get(site)) is None:
                points = found[site] = []
            points.append((number, value))
        return found

    def newest(self, name: str, finding: str = "") -> dict[str, float]:
        """Return site -> its newest value."""
        query = "SELECT site, value FROM measures WHERE name = ? AND finding = ? AND round > ? ORDER BY round"
        last = self.last_round()
        for reach in (5, 50):  # whoever answered lately; only then everything
            rows = self.rows(query, (name, finding, last - reach))
            found: dict[str, float] = dict(rows)
            if found.keys() >= self.keep(History).seen:
                return found
        return {site: points[-1][1] for site, points in self.series(name, finding).items()}

    def names(self) -> list[str]:
        """Return the name of every series."""
        found = self._steps("SELECT name FROM measures WHERE name > ? ORDER BY name LIMIT 1", ())
        return found or sorted({row.name for row in self._untold()})

    def of_sites(self, name: str) -> bool:
        """Whether sites have series of that name, and not only the federation."""
        rows = self.rows("SELECT 1 FROM measures WHERE name = ? AND site != '' LIMIT 1", (name,))
        return bool(rows) or any(row.name == name and row.site for row in self._untold())

    def findings(self, name: str) -> list[str]:
        """Return the findings that have a series of that name, in alphabetical order."""
        query = "SELECT finding FROM measures WHERE name = ? AND finding > ? ORDER BY finding LIMIT 1"
        return self._steps(query, (name,))

    def _steps(self, query: str, values: Values) -> list[str]:
        """Go from one value to the next by the index; DISTINCT would read every row."""
        found: list[str] = []
        while rows := self.rows(query, (*values, found[-1] if found else "")):
            found.append(rows[0][0])
        return found

    def detail(self, name: str, round: int | None = None) -> Any:
        """Return an array that was kept of a round, of the newest if None; None where there is none."""
        query = "SELECT value FROM details WHERE name = ? AND round = ?"
        values: Values = (name, round)
        if round is None:
            query, values = "SELECT value FROM details WHERE name = ? ORDER BY round DESC LIMIT 1", (name,)
        rows = self.rows(query, values)
        return json.loads(rows[0][0]) if rows else None

    def details(self, name: str) -> dict[int, Any]:
        """Return round -> an array that is kept of each."""
        rows = self.rows("SELECT round, value FROM details WHERE name = ? ORDER BY round", (name,))
        return {number: json.loads(value) for number, value in rows}

    def evaluations(self, split: str, arm: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Return arm -> site -> metrics as they came over the wire; of one ``arm``, or of all."""
        query, values = "SELECT arm, site, metrics FROM evaluations WHERE split = ?", (split,)
        if arm is not None:
            query, values = f"{query} AND arm = ?", (split, arm)  # type: ignore[assignment]
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, site, metrics in self.rows(f"{query} ORDER BY rowid", values):
            found.setdefault(name, {})[site] = json.loads(metrics)
        return found

    def _from_records(self, name: str, finding: str) -> list[tuple[str, int, float]]:
        found = [(r.site, r.round, r.value) for r in self._untold() if (r.name, r.finding) == (name, finding)]
        return sorted(found, key=lambda row: row[1])

    def _untold(self) -> list[Measure]:
        """Return the numbers of a ledger of schema 1, which only its records tell."""
        return [] if self.rows("SELECT 1 FROM measures LIMIT 1") else self.keep(History).told(self)


def _config(read: Callable[[], dict[str, Any]]) -> RunConfig | None:
    try:
        return RunConfig.from_flat(read())
    except (ConfigError, KeyError, TypeError):
        return None


def _event(row: tuple[Any, ...]) -> Event:
    number, moment, kind, round, site, text, facts = row
    return Event(number, moment, kind, round, site, text, json.loads(facts))
