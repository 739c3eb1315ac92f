"""Each alert is told once when it opens and once when it is over, whatever happens in between."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.monitor.alerts.alert import Alert
from server.monitor.alerts.book import MOST_PENDING, Book

SILENT = Alert("pilot", "site-silent", "north", "warning", "north is silent", since=0.0)


def alert(site="north", rule="site-silent", run="pilot", patience=0.0):
    return Alert(run, rule, site, "warning", f"{site} is silent", 0.0, patience)


def statuses(notices):
    return [(notice.status, notice.alert.site) for notice in notices]


def test_it_opens_once_and_is_over_once_it_has_been_gone_for_a_while():
    book = Book(None, settle=60.0)
    assert statuses(book.update("pilot", [SILENT], 0.0)) == [("open", "north")]
    assert book.update("pilot", [SILENT], 5.0) == []
    assert book.update("pilot", [], 10.0) == []
    assert book.open() == [SILENT]
    assert book.update("pilot", [], 69.9) == []
    assert statuses(book.update("pilot", [], 70.0)) == [("over", "north")]
    assert book.open() == []
    assert statuses(book.update("pilot", [SILENT], 71.0)) == [("open", "north")]


def test_a_flapping_site_is_one_alert():
    book, told = Book(None, settle=60.0), []
    for second in range(0, 3600, 20):
        told += book.update("pilot", [SILENT] if second % 60 == 0 else [], float(second))
    assert statuses(told) == [("open", "north")]


def test_what_must_hold_for_a_while_is_not_told_before():
    book, thin = Book(None), alert(patience=30.0)
    assert book.update("pilot", [thin], 0.0) == []
    assert book.open() == []
    assert book.update("pilot", [thin], 29.9) == []
    assert book.update("pilot", [], 29.95) == [], "never told, so there is nothing to take back"
    assert book.update("pilot", [thin], 40.0) == [], "it begins anew"
    assert statuses(book.update("pilot", [thin], 70.0)) == [("open", "north")]


def test_reminders_come_at_most_that_often_and_never_of_an_end():
    book = Book(None, remind=100.0)
    alerts = [SILENT, alert("", "run-failed")]
    told = [n for second in range(0, 301, 10) for n in book.update("pilot", alerts, float(second))]
    assert statuses(told) == [("open", "north"), ("open", ""), *[("reminder", "north")] * 3]
    assert len({notice.id for notice in told}) == len(told)


def test_when_a_run_has_ended_its_alerts_are_over_at_once():
    book = Book(None, settle=60.0)
    book.update("pilot", [SILENT], 0.0)
    book.update("other", [alert(run="other")], 0.0)
    assert statuses(book.update("pilot", [alert("", "run-finished")], 1.0, over=True)) == [
        ("open", ""),
        ("over", "north"),
    ]
    assert [a.run for a in book.open()] == ["other", "pilot"]


def test_it_keeps_when_an_alert_began_and_says_how_it_is_now():
    book = Book(None, remind=10.0)
    book.update("pilot", [Alert("pilot", "budget-bytes", "", "warning", "8 of 10", 5.0)], 5.0)
    (again,) = book.update("pilot", [Alert("pilot", "budget-bytes", "", "warning", "9 of 10", 20.0)], 20.0)
    assert (again.alert.since, again.alert.sentence) == (5.0, "9 of 10")


def test_a_restart_tells_nothing_twice_and_forgets_nothing(tmp_path):
    file = tmp_path / "alerts.json"
    book = Book(file, settle=60.0)
    (notice,) = book.update("pilot", [SILENT], 0.0)
    book.update("pilot", [SILENT, alert("south", patience=50.0)], 1.0)
    book.watch("pilot")
    book.post(notice, ["webhook", "email"])
    book.delivered(notice.id, "email")
    book.save()
    assert file.stat().st_mode & 0o777 == 0o600

    book = Book(file, settle=60.0)
    assert book.watches("pilot")
    assert book.pending("webhook") == [notice]
    assert book.pending("email") == []
    assert book.update("pilot", [SILENT], 2.0) == []
    assert book.update("pilot", [], 3.0) == []
    assert statuses(book.update("pilot", [], 63.0)) == [("over", "north")]
    book.delivered(notice.id, "webhook")
    book.save()
    assert Book(file).open() == []
    assert Book(file).pending("webhook") == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"open": 3}',
        b"\xff\xfe",
        b'{"schema": 99}',
        b"[" * 100_000,
        b'{"open": {"a": {}}}',
    ],
)
def test_a_damaged_book_is_begun_anew(tmp_path, caplog, damage):
    file = tmp_path / "alerts.json"
    file.write_bytes(damage)
    book = Book(file)
    assert "alerts.json cannot be read" in caplog.text
    assert str(tmp_path) not in caplog.text
    assert statuses(book.update("pilot", [SILENT], 0.0)) == [("open", "north")]
    book.save()
    assert Book(file).open() == [SILENT]


def test_a_book_of_a_later_version_with_more_in_it_is_begun_anew_or_read_but_never_a_crash(tmp_path):
    file = tmp_path / "alerts.json"
    book = Book(file)
    book.update("pilot", [SILENT], 0.0)
    book.save()
    pages = json.loads(file.read_text()) | {"new": 1}
    file.write_text(json.dumps(pages))
    assert Book(file).open() in ([SILENT], [])


def test_a_folder_that_cannot_be_written_is_said_once_and_alerts_go_on(tmp_path, caplog):
    file = tmp_path / "there" / "alerts.json"
    (tmp_path / "there").write_text("not a folder")
    book = Book(file)
    for second in range(3):
        book.update("pilot", [alert(f"site{second}")], float(second))
        book.save()
    assert caplog.text.count("cannot be written") == 1
    assert len(book.open()) == 3


def test_what_waits_for_delivery_is_bounded_the_oldest_goes_first(caplog):
    book = Book(None)
    for number in range(MOST_PENDING + 3):
        (notice,) = book.update(f"run{number}", [alert(f"s{number}", run=f"run{number}")], float(number))
        book.post(notice, ["webhook"])
    waiting = book.pending("webhook")
    assert len(waiting) == MOST_PENDING
    assert waiting[0].alert.site == "s3"
    assert "the oldest is given up" in caplog.text


def test_runs_and_channels_that_are_gone_are_forgotten():
    book = Book(None)
    (notice,) = book.update("pilot", [SILENT], 0.0)
    book.watch("pilot")
    book.post(notice, ["webhook", "email"])
    book.keep_channels({"email"})
    assert (book.pending("webhook"), book.pending("email")) == ([], [notice])
    book.keep_runs(set())
    assert book.open() == []
    assert not book.watches("pilot")


_KEYS = st.sampled_from(
    [("north", "site-silent"), ("south", "site-silent"), ("", "run-failed"), ("", "divergence-loss")]
)
_STEPS = st.lists(
    st.tuples(
        st.sets(_KEYS),
        st.floats(-5, 120),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(steps=_STEPS, settle=st.sampled_from([0.0, 10.0, 60.0]), patience=st.sampled_from([0.0, 15.0]))
def test_never_two_openings_without_a_closing(tmp_path_factory, steps, settle, patience):
    """Whatever holds when, however the clock jumps, and however often the monitor starts again."""
    file = tmp_path_factory.mktemp("book") / "alerts.json"
    book, now, is_open = Book(file, settle, remind=30.0), 0.0, set()
    for holding, step, over, restart in steps:
        now += step
        for notice in book.update(
            "pilot", [alert(*key, patience=patience) for key in sorted(holding)], now, over
        ):
            if notice.status == "open":
                assert notice.alert.key not in is_open
                is_open.add(notice.alert.key)
            else:
                assert notice.alert.key in is_open
            if notice.status == "over":
                is_open.remove(notice.alert.key)
        assert {a.key for a in book.open()} == is_open
        if restart:
            book.save()
            book = Book(file, settle, remind=30.0)
