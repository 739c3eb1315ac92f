"""The tables: every number of the ledger is in them, as CSV and as Parquet, in little memory."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from server.facts.view import LedgerView
from server.ledger import Ledger
from server.monitor.table_files import csv_pieces, make_parquet, write_parquet
from server.monitor.tables import TABLES
from simulations.benchmarks.large_ledger import write_large_ledger

KINDS = {"text": str, "whole": int, "number": float}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_ledger(tmp_path_factory.mktemp("run"), rounds=11, sites=6, findings=3)


def ask(ledger: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(ledger)) as db:
        return db.execute(query).fetchall()


def rows_of(name: str, ledger: Path) -> list[tuple[Any, ...]]:
    with LedgerView(ledger) as view:
        return list(TABLES[name].rows(view))


def read_csv(name: str, ledger: Path) -> list[dict[str, str]]:
    text = b"".join(csv_pieces(TABLES[name], ledger)).decode()
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_as_the_columns_say(name: str, ledger: Path) -> None:
    rows = rows_of(name, ledger)
    assert rows
    assert len(set(rows)) == len(rows)
    columns = TABLES[name].columns
    for row in rows:
        assert len(row) == len(columns)
        for cell, column in zip(row, columns, strict=True):
            if cell is not None and column.kind in KINDS:
                assert isinstance(cell, KINDS[column.kind]) or column.kind == "number", (column, cell)


def test_measures_are_all_there_across_pages(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(ledger, "SELECT name, finding, site, round, value FROM measures ORDER BY 1, 2, 4, 3")
    assert rows_of("measures", ledger) == expected
    monkeypatch.setattr("server.monitor.tables._PAGE", 7)
    assert rows_of("measures", ledger) == expected


def test_answers_are_the_records(ledger: Path) -> None:
    records = {n: json.loads(text) for n, text in ask(ledger, "SELECT round, record FROM rounds")}
    found = read_csv("answers", ledger)
    assert len(found) == sum(len(record["cohort"]) for record in records.values())
    for row in found:
        record, site = records[int(row["round"])], row["site"]
        assert row["code"] == record["rejected"].get(site, "")
        assert (row["outcome"] == "returned") == (site in record["returned"])
        assert (row["outcome"] == "missing") == (site in record["missing"])
        if row["outcome"] == "returned":
            assert float(row["loss"]) == record["loss"][site]
            assert int(row["studies"]) == record["examples"][site]
    weights = pd.DataFrame(found).astype({"weight": float}, errors="ignore")
    shares = pd.to_numeric(weights["weight"]).groupby(weights["round"]).sum()
    assert shares.between(0.999, 1.001).all()


def test_evaluations_hold_every_single_figure(ledger: Path) -> None:
    found = {
        (row["arm"], row["split"], row["site"], row["finding"], row["metric"]): float(row["value"])
        for row in read_csv("evaluations", ledger)
    }
    for arm, split, site, text in ask(ledger, "SELECT arm, split, site, metrics FROM evaluations"):
        metrics = json.loads(text)
        assert found[arm, split, site, "", "macro-auroc"] == metrics["macro-auroc"]
        low, high = metrics["macro-interval"]
        assert found[arm, split, site, "", "macro-interval-low"] == low
        assert found[arm, split, site, "", "macro-interval-high"] == high
        for key in metrics:
            if key.endswith(".auroc"):
                assert found[arm, split, site, key.removesuffix(".auroc"), "auroc"] == metrics[key]
        if "gain.macro" in metrics:
            gain = [found[arm, split, site, "", f"gain{part}"] for part in ("", "-low", "-high")]
            assert gain == metrics["gain.macro"]


def test_reliability_bins_add_up(ledger: Path) -> None:
    rows = [row for row in read_csv("reliability", ledger) if row["arm"] == "federated"]
    expected = {}
    for site, text in ask(
        ledger, "SELECT site, metrics FROM evaluations WHERE arm = 'federated' AND split = 'test'"
    ):
        for key, value in json.loads(text).items():
            if key.endswith(".bins-studies"):
                expected[site, key.removesuffix(".bins-studies")] = sum(value)
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["split"] == "test":
            key = row["site"], row["finding"]
            found[key] = found.get(key, 0) + int(row["studies"])
    assert found == expected


def test_pairs_are_each_pair_once(ledger: Path) -> None:
    detail = json.loads(ask(ledger, "SELECT value FROM details WHERE name = 'pairs' AND round = 1")[0][0])
    sites = detail["sites"]
    found = {(row[1], row[2]): row[3] for row in rows_of("pairs", ledger) if row[0] == 1}
    assert len(found) == len(sites) * (len(sites) - 1) // 2
    for (first, second), cosine in found.items():
        assert cosine == detail["cosines"][sites.index(first)][sites.index(second)]


def test_parquet_and_csv_say_the_same(ledger: Path, tmp_path: Path) -> None:
    for name, table in TABLES.items():
        write_parquet(table, ledger, tmp_path / name)
        parquet = pq.read_table(tmp_path / name)
        assert parquet.column_names == [column.name for column in table.columns]
        assert parquet.schema.field(0).metadata == {b"about": table.columns[0].about.encode()}
        shown = read_csv(name, ledger)
        assert len(shown) == parquet.num_rows
        numbers = [column.name for column in table.columns if column.kind in ("whole", "number")]
        for column in numbers:
            theirs = [None if row[column] == "" else float(row[column]) for row in shown]
            assert parquet.column(column).to_pylist() == theirs


def test_parquet_is_made_by_another_process_without_pyarrow_in_this_one(ledger: Path, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    script = (
        "import sys; from pathlib import Path; from server.monitor.table_files import make_parquet;"
        "from server.monitor.tables import TABLES;"
        "make_parquet(TABLES['events'], Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(sorted({'pyarrow', 'torch', 'pandas', 'flwr'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ledger), str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert pq.read_table(file).num_rows == ask(ledger, "SELECT count(*) FROM events")[0][0]


def test_what_cannot_be_made_says_so(ledger: Path, tmp_path: Path) -> None:
    from common.errors import RunError

    with pytest.raises(RunError, match="could not be written"):
        make_parquet(TABLES["events"], ledger, tmp_path / "missing" / "events.parquet")


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_a_spreadsheet_would_run_is_defused(text: str, tmp_path: Path) -> None:
    made = Ledger(tmp_path / "ledger.sqlite")
    made.event("note", text, site=text)
    made.close()
    data = b"".join(csv_pieces(TABLES["events"], tmp_path / "ledger.sqlite")).decode()
    (row,) = csv.DictReader(data.splitlines(keepends=True))
    assert row["text"] == row["site"] == f"'{text}"


def test_negative_numbers_stay_numbers(tmp_path: Path) -> None:
    from server.measures import Measure

    made = Ledger(tmp_path / "ledger.sqlite")
    made.put_measures([Measure("cosine", "", "north", 1, -0.5)])
    made.close()
    data = b"".join(csv_pieces(TABLES["measures"], tmp_path / "ledger.sqlite")).decode()
    assert data.splitlines()[1] == "cosine,,north,1,-0.5"


def test_a_ledger_of_schema_1_has_what_its_records_tell(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    record = {
        "round": 1, "status": "committed", "cohort": ["a", "b"], "returned": ["a"], "missing": ["b"],
        "rejected": {}, "up": 5, "down": 6, "seconds": 1.5, "lora_error": None, "loss": {"a": 0.5},
        "steps": {"a": 3}, "examples": {"a": 9}, "update_norm": {"a": 1.0}, "payload": {"a": 4},
        "validation_before": {"a": 0.6},
    }  # fmt: skip
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute("INSERT INTO run VALUES ('schema', '1')")
        db.execute("CREATE TABLE rounds (round INTEGER PRIMARY KEY, record TEXT NOT NULL)")
        db.execute("INSERT INTO rounds VALUES (1, ?)", (json.dumps(record),))
    assert [row[:4] for row in rows_of("answers", path)] == [
        (1, "a", "returned", ""),
        (1, "b", "missing", ""),
    ]
    assert ("loss", "", "a", 1, 0.5) in rows_of("measures", path)
    assert rows_of("pairs", path) == rows_of("events", path) == []


def test_reading_a_table_does_not_hold_up_the_writer(ledger: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ledger.sqlite"
    copy.write_bytes(ledger.read_bytes())
    writer = Ledger(copy)
    pieces = csv_pieces(TABLES["measures"], copy)
    next(pieces)
    writer.event("note", "written while a table is half read")
    with closing(sqlite3.connect(copy)) as db:
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0  # no reader stands in the way
    pieces.close()
    writer.close()


@pytest.mark.slow
def test_a_million_rows_take_little_memory(tmp_path: Path) -> None:
    ledger = write_large_ledger(tmp_path, rounds=500, sites=50, findings=14)
    script = (
        "import resource, sys; from pathlib import Path; from server.monitor.table_files import csv_pieces;"
        "from server.monitor.tables import TABLES;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "rows = sum(piece.count(b'\\n') for piece in csv_pieces(TABLES['measures'], Path(sys.argv[1])));"
        "print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ledger)], capture_output=True, text=True, check=True
    )
    rows, grown = map(int, done.stdout.split())
    assert rows > 1_300_000
    assert grown < 50


def test_the_guide_lists_every_table_as_it_is(repository: Path) -> None:
    guide = (repository / "docs" / "monitor-machines.md").read_text()
    for name, table in TABLES.items():
        columns = ", ".join(f"`{column.name}`" for column in table.columns)
        assert re.search(
            rf"^\| `{name}` \| {re.escape(table.about)} \| {re.escape(columns)} \|$", guide, re.MULTILINE
        )
