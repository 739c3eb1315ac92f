"""The ledger keeps what it is told, in order, and can be read while it is written."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from server.ledger import SCHEMA_VERSION, Ledger, Measure


@pytest.fixture
def ledger(tmp_path):
    book = Ledger(tmp_path / "run" / "ledger.sqlite")
    yield book
    book.close()


def test_facts_are_set_and_replaced(ledger):
    assert ledger.get("schema") == SCHEMA_VERSION
    assert ledger.get("nothing") is None
    for value in (3, "x", None, [1, {"a": 0.5}], {"round": 2}):
        ledger.put("key", value)
        assert ledger.get("key") == value


def test_sites_and_evaluations_come_back_as_they_went_in(ledger):
    ledger.put_site("south", {"train": 3})
    ledger.put_site("north", {"train": 4})
    ledger.put_site("south", {"train": 5})
    assert list(ledger.sites().items()) == [("north", {"train": 4}), ("south", {"train": 5})]
    ledger.put_evaluation("local", "test", "north", {"macro-auroc": 0.7})
    ledger.put_evaluation("federated", "test", "north", {"macro-auroc": 0.8, "edema.interval": [0.1, 0.2]})
    ledger.put_evaluation("federated", "validation", "north", {"macro-auroc": 0.9})
    assert ledger.evaluations("test") == {
        "local": {"north": {"macro-auroc": 0.7}},
        "federated": {"north": {"macro-auroc": 0.8, "edema.interval": [0.1, 0.2]}},
    }
    assert ledger.evaluations("none") == {}


def test_reset_makes_the_rounds_those_on_disk(ledger):
    for number in (3, 1, 2):
        ledger.put_round({"round": number, "status": "committed"})
    assert [r["round"] for r in ledger.rounds()] == [1, 2, 3]
    ledger.reset_rounds([{"round": 1, "status": "again"}])
    assert ledger.rounds() == [{"round": 1, "status": "again"}]
    ledger.reset_rounds([])
    assert ledger.rounds() == []


def test_events_after_an_id(ledger):
    for number in range(5):
        ledger.event("round", f"Round {number}", round=number, site="north", up=10 * number)
    events = list(ledger.events())
    assert [e.text for e in events] == [f"Round {n}" for n in range(5)]
    assert [e.id for e in events] == sorted(e.id for e in events)
    assert (events[2].kind, events[2].round, events[2].site, events[2].facts) == (
        "round",
        2,
        "north",
        {"up": 20},
    )
    assert [e.round for e in ledger.events(after=events[2].id)] == [3, 4]
    assert list(ledger.events(after=events[-1].id)) == []
    ledger.event("plan", "no round, no site")
    last = next(iter(ledger.events(after=events[-1].id)))
    assert (last.round, last.site, last.facts) == (None, None, {})
    assert last.time >= events[0].time


def test_it_outlives_its_process(tmp_path):
    first = Ledger(tmp_path / "l.sqlite")
    first.put("key", 1)
    first.event("a", "first")
    first.close()
    again = Ledger(tmp_path / "l.sqlite")
    assert again.get("key") == 1
    again.event("b", "second")
    assert [e.id for e in again.events()] == [1, 2]
    again.close()


def test_a_reader_beside_the_writer_sees_whole_rounds_only(tmp_path, ledger):
    """Another connection reads while rounds are reset over and over: always three, of one generation."""
    path = tmp_path / "run" / "ledger.sqlite"
    ledger.reset_rounds([{"round": n, "generation": 0} for n in (1, 2, 3)])
    seen, stop, wrong = set(), threading.Event(), []

    def watch():
        reader = sqlite3.connect(path)
        while not stop.is_set():
            rows = [r for (r,) in reader.execute("SELECT record FROM rounds ORDER BY round")]
            generations = {row.partition('"generation": ')[2] for row in rows}
            if len(rows) != 3 or len(generations) != 1:
                wrong.append(rows)
            seen.update(generations)
        reader.close()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for generation in range(1, 60):
            ledger.reset_rounds([{"round": n, "generation": generation} for n in (1, 2, 3)])
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert len(seen) > 1


def rows(ledger: Ledger) -> set[tuple[object, ...]]:
    return {*ledger._db.execute("SELECT name, finding, site, round, value FROM measures")}


def details(ledger: Ledger) -> list[tuple[object, ...]]:
    return ledger._db.execute("SELECT name, round, value FROM details ORDER BY name, round").fetchall()


def record(number: int, **more: object) -> dict[str, object]:
    return {
        "round": number, "status": "committed", "seconds": 2.0, "up": 30, "down": 20, "lora_error": 0.1,
        "loss": {"a": 0.5}, "examples": {"a": 3, "b": 1}, "validation_before": {"a": 0.7}, **more,
    }  # fmt: skip


def test_a_round_comes_with_its_numbers_or_not_at_all(tmp_path, ledger):
    ledger.put_round(record(1), [Measure("loss", "", "a", 1, 0.5)], {"drift": {"values": [1.0]}})
    assert rows(ledger) == {("loss", "", "a", 1, 0.5)}
    assert details(ledger) == [("drift", 1, '{"values": [1.0]}')]
    with pytest.raises(sqlite3.IntegrityError):
        ledger.put_round(record(2), [Measure("loss", "", "a", 2, 0.4), Measure("loss", "", "b", 2, None)])
    assert len(ledger.rounds()) == 1 and len(rows(ledger)) == 1
    ledger.put_detail("pairs", 1, [[1.0]])
    ledger.put_measures([Measure("loss", "", "a", 1, 0.25), Measure("auroc", "edema", "a", 0, 0.5)])
    assert rows(ledger) == {("loss", "", "a", 1, 0.25), ("auroc", "edema", "a", 0, 0.5)}


def test_writes_that_go_together_are_all_made_or_none(tmp_path, ledger):
    def write(value):
        with ledger.together():
            ledger.put("key", value)
            ledger.event("said", "it")
            ledger.put_measures([Measure("up", "", "a", 1, value)])

    write(7.0)
    with pytest.raises(sqlite3.IntegrityError):
        write(None)
    assert ledger.get("key") == 7.0 and len(list(ledger.events())) == 1
    assert rows(ledger) == {("up", "", "a", 1, 7.0)}


def test_what_came_of_later_rounds_goes_with_them(ledger):
    for number in (1, 2, 3):
        numbers = [Measure("auroc", "edema", "a", number - 1, 0.6), Measure("seconds", "", "", number, 1.0)]
        ledger.put_round(record(number), numbers, {"drift": {"values": [number]}})
    ledger.put_evaluation("local", "test", "a", {"macro-auroc": 0.6})
    ledger.put_evaluation("local:a", "test", "b", {"macro-auroc": 0.6})
    ledger.put_evaluation("pooled", "test", "a", {"macro-auroc": 0.6})
    ledger.put_evaluation("federated", "test", "a", {"macro-auroc": 0.6})
    ledger.put_evaluation("federated", "validation", "a", {"edema.auroc": 0.9, "macro-auroc": 0.8})
    assert ("auroc", "edema", "a", 3, 0.9) in rows(ledger) and ("auroc", "", "a", 3, 0.8) in rows(ledger)
    ledger.reset_rounds(ledger.rounds())
    assert len(ledger.evaluations("test")) == 4, "nothing is gone"
    ledger.reset_rounds(ledger.rounds()[:2])
    assert {row[3] for row in rows(ledger)} == {0, 1, 2} and [row[1] for row in details(ledger)] == [1, 2]
    assert {*ledger.evaluations("test")} == {"local", "local:a", "pooled"}
    assert ledger.evaluations("validation") == {}
    ledger.reset_rounds([])
    assert {row[3] for row in rows(ledger)} == {0} and details(ledger) == []


def test_a_round_whose_numbers_a_crash_swallowed_gets_those_of_its_record(ledger):
    ledger.put_round(record(1), [Measure("seconds", "", "", 1, 9.0)])
    ledger.reset_rounds([record(1), record(2)])
    assert {row for row in rows(ledger) if row[3] == 1 and row[0] == "seconds"} == {
        ("seconds", "", "", 1, 9.0)
    }
    assert {("loss", "", "a", 2, 0.5), ("weight", "", "a", 2, 0.75), ("auroc", "", "a", 1, 0.7),
            ("lora-error", "", "", 2, 0.1), ("up", "", "", 2, 30.0)} <= rows(ledger)  # fmt: skip


def test_what_no_measure_can_be_is_not_kept(ledger):
    metrics = {
        "edema.auroc": 1.5,
        "edema.ece": float("nan"),
        "edema.pr-auc": 0.5,
        "macro-auroc": -1,
        "a.b": 0.5,
    }
    ledger.put_evaluation("federated", "validation", "a", metrics)
    assert rows(ledger) == {("pr-auc", "edema", "a", 0, 0.5), ("pr-auc", "", "a", 0, 0.5)}


_SCHEMA_1 = """
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE sites (site TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE rounds (round INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE evaluations (
    arm TEXT NOT NULL, split TEXT NOT NULL, site TEXT NOT NULL, metrics TEXT NOT NULL,
    PRIMARY KEY (arm, split, site)
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL,
    round INTEGER, site TEXT, text TEXT NOT NULL, facts TEXT NOT NULL
);
INSERT INTO run VALUES ('schema', '1');
"""
"""As server/ledger.py of commit 1b52fdf made them."""


def test_a_ledger_of_schema_1_is_read_as_it_is_and_grows_with_the_first_number(tmp_path):
    path = tmp_path / "l.sqlite"
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(_SCHEMA_1)
    old.execute("PRAGMA journal_mode=WAL")
    before = {*old.execute("SELECT name FROM sqlite_master")}
    ledger = Ledger(path)
    ledger.event("plan", "it is read")
    assert ledger.rounds() == [] and ledger.get("schema") == 1
    assert {*old.execute("SELECT name FROM sqlite_master")} == before, "who only reads needs no room"
    ledger.put_round(record(1), [Measure("loss", "", "a", 1, 0.5)])
    assert ledger.get("schema") == SCHEMA_VERSION and len(rows(ledger)) == 1
    ledger.close()
    old.close()


def test_a_commit_of_many_sites_stays_small(tmp_path):
    """Rows of a round lie side by side: 60 series of 50 sites touch few pages, whatever went before."""
    ledger = Ledger(tmp_path / "l.sqlite")
    for number in range(1, 41):
        numbers = [Measure(f"m{k}", "", f"site-{s:02d}", number, 0.5) for k in range(60) for s in range(50)]
        ledger.put_round(record(number), numbers)
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.put_round(
        record(41), [Measure(f"m{k}", "", f"site-{s:02d}", 41, 0.5) for k in range(60) for s in range(50)]
    )
    assert (tmp_path / "l.sqlite-wal").stat().st_size < 1_200_000
    ledger.close()
