"""The gateway's own records: events, the mailbook, and what Flower may write in a log."""

from __future__ import annotations

import logging
import sqlite3
import sys

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from server.centre.events import Events, read_events
from server.centre.faults import PlainLines, is_disk_full, listen_to_databases, watch_faults
from server.centre.mailbook import KEPT_SECONDS, Given, Mailbook
from server.centre.pulse import Pulse


def test_an_event_is_written_once_a_minute_and_counted(tmp_path):
    now = [1000.0]
    events = Events(tmp_path, clock=lambda: now[0])
    assert [events.add("refused", "words", site="north", route="get-run") for _ in range(5)] == [True] + 4 * [
        False
    ]
    assert events.add("refused", "words", site="south", route="get-run")
    now[0] += 61
    assert events.add("refused", "words", site="north", route="get-run")
    counts = [event["count"] for event in read_events(tmp_path) if event["site"] == "north"]
    assert counts == [1, 5]


def test_late_answers_of_each_round_are_events_of_their_own(tmp_path):
    events = Events(tmp_path)
    for group in ("1", "2", "2"):
        events.add("late", "words", site="north", run="7", group=group)
    assert [event["group"] for event in read_events(tmp_path)] == ["1", "2"]


def test_events_survive_a_line_cut_short_and_grow_only_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr("server.centre.events.MOST_BYTES", 200)
    events = Events(tmp_path)
    for number in range(12):
        events.add("connected", "words", site=f"site-{number}")
    with events.path.open("a") as stream:
        stream.write('{"time": 1, "ki')
    assert list(read_events(tmp_path))[-1]["site"] == "site-11"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 700


def test_the_mailbook_remembers_across_restarts_and_forgets_the_old(tmp_path):
    now = [0.0]
    first = Mailbook(tmp_path / "book.sqlite", clock=lambda: now[0])
    given = Given("a" * 64, 2**64 - 1, 2**63 + 5, "3", expires=100.0)
    first.hand(given)
    first.hand(Given("b" * 64, 7, 8, "", expires=KEPT_SECONDS * 2))
    first.take(given.message, "c" * 64, "session", complete=False)
    first.close()
    again = Mailbook(tmp_path / "book.sqlite", clock=lambda: now[0])
    found = again.given(given.message)
    assert (found.node, found.run, found.answer, found.complete) == (2**64 - 1, 2**63 + 5, "c" * 64, False)
    assert again.of_session("session") == found
    assert again.asked(2**63 + 5, 2**64 - 1)
    assert not again.asked(2**63 + 5, 7)
    again.complete(given.message)
    assert again.given(given.message).complete
    again.close()
    now[0] = KEPT_SECONDS + 200
    later = Mailbook(tmp_path / "book.sqlite", clock=lambda: now[0])
    assert later.given(given.message) is None
    assert later.of_session("session") is None
    assert later.given("b" * 64) is not None
    later.close()


def test_a_standstill_is_noticed_once_and_given_back():
    now, given = [0.0], []

    class Counted:
        def give_time(self) -> None:
            given.append(now[0])

    pulse = Pulse(Counted(), clock=lambda: now[0])
    pulse.start()
    for seconds in (0.5, 9.0, 60.0, 0.5):
        now[0] += seconds
        pulse.beat()
    assert given == [0.0, 69.5]


def test_a_log_line_holds_no_parameters_and_no_traceback():
    def line(message: object, *values: object, fault: bool = False, level: int = logging.ERROR) -> str | None:
        info = None
        if fault:
            try:
                raise ValueError("Smith^John")
            except ValueError:
                info = sys.exc_info()
        record = logging.LogRecord("flwr", level, __file__, 1, message, values, info)
        return logging.Formatter("%(message)s").format(record) if PlainLines().filter(record) else None

    assert line("it %s", "went") == "it went"
    assert line("failed: %s", "locked\n[SQL: INSERT]\n[parameters: ('Smith^John',)]") == "failed: locked"
    assert line({"query": "SELECT 1", "data": {"name": "Smith^John"}}) == "database: SELECT 1"
    assert "Smith" not in line("a fault", fault=True)
    assert "ValueError in line" in line("a fault", fault=True)
    assert len(line("x" * 10_000)) == 400
    assert line("Request: %s", "Smith^John", level=logging.DEBUG) is None


def test_a_full_disk_is_told_from_other_faults_and_hides_parameters(tmp_path):
    listen_to_databases()
    engine = create_engine(f"sqlite:///{tmp_path / 'x.sqlite'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a BLOB UNIQUE)"))
        connection.execute(text("PRAGMA max_page_count = 10"))
        with watch_faults() as faults, pytest.raises(SQLAlchemyError) as caught:
            connection.execute(text("INSERT INTO t VALUES (:a)"), {"a": "Smith^John" * 50_000})
        assert faults.disk_full
        assert "Smith" not in str(caught.value)
        with watch_faults() as faults, pytest.raises(SQLAlchemyError):
            connection.execute(text("INSERT INTO nowhere VALUES (1)"))
        assert not faults.disk_full
    engine.dispose()
    assert is_disk_full(OSError(28, "No space left on device"))
    assert not is_disk_full(sqlite3.OperationalError("no such table"))
