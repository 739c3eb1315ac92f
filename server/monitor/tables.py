"""A ledger as plain tables: for spreadsheets, notebooks and archives.

Rows are read in pages, each its own short transaction: a table of a million rows takes no memory to
speak of, and a slow reader holds up neither the run's writer nor the file's upkeep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from common.protocol import BIN_SPAN
from server.facts.history import History
from server.facts.view import LedgerView

Cell = str | int | float | datetime | None
Row = tuple[Cell, ...]
Kind = Literal["text", "whole", "number", "time"]

_PAGE = 4_000
_BINS = ("bins-studies", "bins-positives", "bins-mean")


@dataclass(frozen=True)
class Column:
    """One column."""

    name: str
    kind: Kind
    about: str


@dataclass(frozen=True)
class Table:
    """One table of a ledger."""

    name: str
    about: str
    columns: tuple[Column, ...]
    rows: Callable[[LedgerView], Iterator[Row]]
    """Reads the rows in order, each as long as ``columns``; an older ledger may have none."""


def _paged(
    view: LedgerView, table: str, keys: Sequence[str], columns: Sequence[str], first: Row
) -> Iterator[tuple[Any, ...]]:
    """Yield ``columns`` of every row after the key ``first``, in the order of the primary key."""
    order, marks = ", ".join(keys), ", ".join("?" for _ in keys)
    query = (
        f"SELECT {order}, {', '.join(columns)} FROM {table}"
        f" WHERE ({order}) > ({marks}) ORDER BY {order} LIMIT {_PAGE}"
    )
    after: Sequence[Any] = first
    while rows := view.rows(query, tuple(after)):
        yield from (row[len(keys) :] for row in rows)
        after = rows[-1][: len(keys)]


def _records(view: LedgerView) -> Iterator[dict[str, Any]]:
    for (record,) in _paged(view, "rounds", ("round",), ("record",), (-1,)):
        yield json.loads(record)


def _rounds(view: LedgerView) -> Iterator[Row]:
    for r in _records(view):
        counts = (len(r[key]) for key in ("cohort", "returned", "missing", "rejected"))
        yield (r["round"], r["status"], *counts, r["up"], r["down"], r["seconds"], r["lora_error"])


_OF_RECORD = {"studies": "examples", "steps": "steps", "loss": "loss", "update_norm": "update_norm"}
_OF_MEASURES = {"weight": "weight", "cosine": "cosine", "seconds": "seconds", "up": "up", "down": "down"}


def _answers(view: LedgerView) -> Iterator[Row]:
    """Join the rounds' records with what was measured of each site's answer."""
    query = "SELECT value FROM measures WHERE name = ? AND finding = '' AND site = ? AND round = ?"
    for record in _records(view):
        number = record["round"]
        for site in record["cohort"]:
            code = record["rejected"].get(site, "")
            outcome = "rejected" if code else "missing" if site in record["missing"] else "returned"
            told = [record.get(key, {}).get(site) for key in _OF_RECORD.values()]
            found: list[Cell] = []
            for name in _OF_MEASURES.values():
                rows = view.rows(query, (name, site, number))
                value = rows[0][0] if rows else None
                found.append(int(value) if value is not None and name in ("up", "down") else value)
            yield (number, site, outcome, code, *told, *found)


def _sites(view: LedgerView) -> Iterator[Row]:
    for site, text in _paged(view, "sites", ("site",), ("site", "facts"), ("",)):
        facts = json.loads(text)
        counts = [
            facts.get(key) for key in ("train-studies", "validation-studies", "test-studies", "patients")
        ]
        aside = {
            key.removeprefix("quarantined."): count
            for key, count in facts.items()
            if key.startswith("quarantined.")
        }
        reasons = ", ".join(f"{why}: {count}" for why, count in aside.items())
        yield (site, *counts, ", ".join(facts.get("findings", ())), sum(aside.values()), reasons)


def _events(view: LedgerView) -> Iterator[Row]:
    columns = ("id", "time", "kind", "round", "site", "text", "facts")
    for number, moment, *rest in _paged(view, "events", ("id",), columns, (0,)):
        yield (number, datetime.fromtimestamp(moment, UTC), *rest)


def _evaluated(view: LedgerView) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    keys = ("arm", "split", "site")
    for arm, split, site, metrics in _paged(view, "evaluations", keys, (*keys, "metrics"), ("", "", "")):
        yield arm, split, site, json.loads(metrics)


def _evaluations(view: LedgerView) -> Iterator[Row]:
    for arm, split, site, metrics in _evaluated(view):
        for key, value in metrics.items():
            finding, name = _finding_of(key)
            if name not in (*_BINS, *BIN_SPAN):
                for suffix, single in _singles(name, value):
                    yield (arm, split, site, finding, name + suffix, single)


def _finding_of(key: str) -> tuple[str, str]:
    """Take a wire key apart: ``edema.auroc``, ``gain.edema``, ``gain.macro``, ``macro-auroc``."""
    first, dot, last = key.rpartition(".")
    if first in ("gain", "gain-se"):
        return ("" if last == "macro" else last), first
    return (first, last) if dot else ("", key)


def _singles(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if not isinstance(value, list):
        yield "", float(value)
        return
    suffixes = ("", "-low", "-high") if name == "gain" else ("-low", "-high")
    yield from zip(suffixes, map(float, value), strict=False)


def _reliability(view: LedgerView) -> Iterator[Row]:
    for arm, split, site, metrics in _evaluated(view):
        for key, studies in metrics.items():
            finding, name = _finding_of(key)
            if name != _BINS[0]:
                continue
            positives, means = (metrics.get(f"{finding}.{other}", ()) for other in _BINS[1:])
            bins = zip(studies, positives, means, strict=False)
            yield from ((arm, split, site, finding, n, *one) for n, one in enumerate(bins))


def _measures(view: LedgerView) -> Iterator[Row]:
    keys, columns = ("name", "finding", "round", "site"), ("name", "finding", "site", "round", "value")
    yield from _paged(view, "measures", keys, columns, ("", "", -1, ""))
    if not view.rows("SELECT 1 FROM measures LIMIT 1"):  # schema 1: what the rounds' records tell
        yield from ((m.name, m.finding, m.site, m.round, m.value) for m in view.keep(History).told(view))


def _details(view: LedgerView, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = _paged(view, "details", ("name", "round"), ("name", "round", "value"), (name, -1))
    for found, number, value in rows:
        if found != name:
            return
        yield number, json.loads(value)


def _pairs(view: LedgerView) -> Iterator[Row]:
    for number, detail in _details(view, "pairs"):
        sites = detail["sites"]
        for i, first in enumerate(sites):
            yield from ((number, first, sites[j], detail["cosines"][i][j]) for j in range(i))


def _drift(view: LedgerView) -> Iterator[Row]:
    for number, detail in _details(view, "drift"):
        yield from ((number, *pair) for pair in zip(detail["blocks"], detail["values"], strict=True))


_ROUND = Column("round", "whole", "Server round, from 1.")
_SITE = Column("site", "text", "The site's name.")
_FINDING = Column("finding", "text", "A finding; empty: over all of them.")
_ARM = Column("arm", "text", "Which model: `federated`, `local`, `calibrated`, `local:SITE` ...")
_SPLIT = Column("split", "text", "`validation` or `test` studies.")

_ALL = (
    Table(
        "rounds",
        "One row per round.",
        (
            _ROUND,
            Column("status", "text", "`committed` or `abandoned`."),
            Column("asked", "whole", "Sites asked."),
            Column("returned", "whole", "Sites whose update was taken."),
            Column("missing", "whole", "Sites that missed the deadline."),
            Column("rejected", "whole", "Sites whose answer was not taken."),
            Column("up", "whole", "Bytes from the sites."),
            Column("down", "whole", "Bytes to the sites."),
            Column("seconds", "number", "From the first question to the new aggregate."),
            Column("lora_error", "number", "How much of the mean the applied adapter misses, 0 to 1."),
        ),
        _rounds,
    ),
    Table(
        "answers",
        "One row per round and site asked.",
        (
            _ROUND,
            _SITE,
            Column("outcome", "text", "`returned`, `missing` or `rejected`."),
            Column("code", "text", "Why it was rejected."),
            Column("studies", "whole", "Training studies the update stands for."),
            Column("steps", "whole", "Local steps."),
            Column("loss", "number", "Training loss at the site."),
            Column("update_norm", "number", "L2 norm of the update."),
            Column("weight", "number", "The site's share of the mean, 0 to 1."),
            Column("cosine", "number", "Cosine of the update with the aggregate."),
            Column("seconds", "number", "From question to answer."),
            Column("up", "whole", "Bytes the site sent."),
            Column("down", "whole", "Bytes it was sent."),
        ),
        _answers,
    ),
    Table(
        "sites",
        "One row per site that enrolled.",
        (
            _SITE,
            Column("train_studies", "whole", "Studies to train on."),
            Column("validation_studies", "whole", "Studies to choose by."),
            Column("test_studies", "whole", "Studies to test on."),
            Column("patients", "whole", "Patients of all these."),
            Column("findings", "text", "Findings the site annotates."),
            Column("set_aside", "whole", "Studies it could not use."),
            Column("set_aside_reasons", "text", "The same by reason."),
        ),
        _sites,
    ),
    Table(
        "events",
        "Everything that happened, in order.",
        (
            Column("id", "whole", "Grows with time."),
            Column("time", "time", "When, in UTC."),
            Column("kind", "text", "What kind of event."),
            _ROUND,
            _SITE,
            Column("text", "text", "A sentence."),
            Column("facts", "text", "The facts, as JSON."),
        ),
        _events,
    ),
    Table(
        "evaluations",
        "One row per figure of every evaluation.",
        (
            _ARM,
            _SPLIT,
            _SITE,
            _FINDING,
            Column("metric", "text", "`auroc`, `pr-auc`, `ece`, `positives`, `gain` ... and bounds."),
            Column("value", "number", "Its value; what is undefined has no row."),
        ),
        _evaluations,
    ),
    Table(
        "reliability",
        "One row per bin of a reliability diagram.",
        (
            _ARM,
            _SPLIT,
            _SITE,
            _FINDING,
            Column("bin", "whole", "From the smallest probability, 0 first."),
            Column("studies", "whole", "Studies in the bin."),
            Column("positives", "whole", "Of those, with the finding."),
            Column("mean", "number", "Mean predicted probability."),
        ),
        _reliability,
    ),
    Table(
        "measures",
        "Every number behind the curves.",
        (
            Column("name", "text", "`auroc`, `loss`, `update-norm`, `lora-error` ..."),
            _FINDING,
            Column("site", "text", "The site; empty: the federation."),
            Column("round", "whole", "After which round; 0: at the start."),
            Column("value", "number", "The value."),
        ),
        _measures,
    ),
    Table(
        "pairs",
        "How alike two sites' updates were; each pair once per round.",
        (
            _ROUND,
            _SITE,
            Column("other", "text", "The other site."),
            Column("cosine", "number", "Cosine of the two."),
        ),
        _pairs,
    ),
    Table(
        "drift",
        "How far the adapter has moved since the run began.",
        (
            _ROUND,
            Column("block", "text", "Part of the adapter."),
            Column("distance", "number", "L2 distance from where it began."),
        ),
        _drift,
    ),
)

TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}
"""Name -> table, in the order in which they are offered."""
