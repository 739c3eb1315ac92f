"""Who did what in which round, kept compactly and read from a ledger round by round."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from server.measures import Measure, from_record, of_validation

if TYPE_CHECKING:
    from server.facts.view import LedgerView

Part = Literal["returned", "missing", "rejected", "not asked", "asked"]


class History:
    """Every round's participation, and the sums over rounds.

    Only rounds that are new since the last look are read; after a rollback all of them are.
    """

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.parts: dict[str, list[Part]] = {}
        """Site -> what it did in each of ``rounds``."""
        self.up = self.down = 0
        """Bytes of training rounds."""
        self.missed = 0
        """Deadlines that sites missed."""
        self.abandoned: list[int] = []
        """Rounds that ended below quorum."""
        self._generation: Any = None
        self._told: tuple[object, list[Measure]] = (None, [])

    @property
    def seen(self) -> set[str]:
        """Sites that returned an update in one of the last five rounds."""
        return {site for site, parts in self.parts.items() if "returned" in parts[-5:]}

    def update(self, view: LedgerView) -> None:
        """Read the rounds that are new."""
        generation = view.get("generation")
        last = self.rounds[-1] if self.rounds else 0
        if generation != self._generation or view.last_round() < last:
            self.__init__()  # type: ignore[misc]
            self._generation, last = generation, 0
        for (text,) in view.rows("SELECT record FROM rounds WHERE round > ? ORDER BY round", (last,)):
            self._take(json.loads(text))

    def _take(self, record: dict[str, Any]) -> None:
        before = len(self.rounds)
        self.rounds.append(record["round"])
        self.up += record["up"]
        self.down += record["down"]
        self.missed += len(record["missing"])
        if record["status"] == "abandoned":
            self.abandoned.append(record["round"])
        did: dict[str, Part] = dict.fromkeys(record["cohort"], "missing")
        did |= dict.fromkeys(record["returned"], "returned")
        did |= dict.fromkeys(record["rejected"], "rejected")
        for site in did.keys() - self.parts.keys():
            self.parts[site] = ["not asked"] * before
        for site, parts in self.parts.items():
            parts.append(did.get(site, "not asked"))

    def told(self, view: LedgerView) -> list[Measure]:
        """Return the numbers that the records alone tell: of a ledger of schema 1."""
        mark = (self._generation, len(self.rounds), len(view.evaluations("validation")))
        if self._told[0] != mark:
            records = view.rows("SELECT record FROM rounds ORDER BY round")
            rows = [row for (text,) in records for row in from_record(json.loads(text))]
            last = self.rounds[-1] if self.rounds else 0
            for site, metrics in view.evaluations("validation", "federated").get("federated", {}).items():
                rows += of_validation(site, last, metrics)
            self._told = (mark, rows)
        return self._told[1]
