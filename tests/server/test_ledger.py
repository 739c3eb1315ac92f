"""The ledger keeps what it is told, in order, and can be read while it is written."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from server.ledger import SCHEMA_VERSION, Ledger


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
