"""Rules, book and channels over a real centre: its registry, its ledgers, and a receiver that listens."""

from __future__ import annotations

import json
import time

import pytest

from common.errors import ConfigError
from server.facts.runs import Runs
from server.monitor.alerts.book import Book
from server.monitor.alerts.loop import AlertLoop, make_loop
from server.monitor.alerts.settings import AlertSettings


class Watcher:
    """An alert loop over a centre that looks when it is told to, at a time the test decides."""

    def __init__(self, centre, file, **settings):
        self.skew = 0.0
        self.runs = Runs.of_centre(centre.folder)
        self.runs._looked = -2.0
        self.settings = AlertSettings(**{"settle": 60.0} | settings)
        book = Book(file, self.settings.settle, self.settings.remind * 3600)
        self.loop = AlertLoop(self.runs, self.settings, book, (), clock=lambda: time.time() + self.skew)

    def look(self, later=0.0):
        self.skew += later
        return [(n.status, n.alert.run, n.alert.rule, n.alert.site) for n in self.loop.look()]


@pytest.fixture
def watcher(page_centre):
    made = []

    def make(**settings):
        made.append(Watcher(page_centre, page_centre.folder.root / "alerts.json", **settings))
        return made[-1]

    yield make
    for one in made:
        one.runs.close()


@pytest.fixture
def live(page_centre):
    """A run of three sites in its second round; all are connected."""
    run = page_centre.run("pilot", ["north", "south", "east"], began=time.time() - 100.0)
    run.enrol()
    run.whole_round(1)
    run.ask(2)
    for site in run.sites:
        page_centre.hear(site)
    return run


def test_a_site_falls_silent_and_comes_back(watcher, page_centre, live):
    watch = watcher()
    assert watch.look() == []
    page_centre.hear("north", ago=301.0)
    assert watch.look() == [("open", "pilot", "site-silent", "north")]
    assert watch.look() == []
    page_centre.hear("north")
    assert watch.look() == []
    assert watch.look(later=59.0) == []
    assert watch.look(later=2.0) == [("over", "pilot", "site-silent", "north")]


def test_a_rejected_update_is_told_with_its_reason_and_is_over_when_the_site_is_admitted(watcher, live):
    watch = watcher(settle=0.0)
    live.commit(2, rejected=["east"])
    live.reject(2, "east")
    assert watch.look() == [("open", "pilot", "update-rejected", "east")]
    (alert,) = watch.loop.open()
    assert "larger than strategy.max_update_norm" in alert.sentence
    live.whole_round(3)
    assert watch.look() == [("over", "pilot", "update-rejected", "east")]


def test_a_restart_of_the_monitor_tells_nothing_twice(watcher, page_centre, live):
    page_centre.hear("north", ago=400.0)
    assert watcher().look() == [("open", "pilot", "site-silent", "north")]
    assert watcher().look() == []


def test_the_end_of_a_run_closes_what_was_open_even_if_nobody_watched(watcher, page_centre, live):
    page_centre.hear("north", ago=400.0)
    watcher().look()
    live.ledger.event("failed", "RunError at /srv/secret/place: no room")
    told = watcher().look()
    assert told == [("open", "pilot", "run-failed", ""), ("over", "pilot", "site-silent", "north")]
    later = watcher()
    assert later.look() == []
    assert json.loads((page_centre.folder.root / "alerts.json").read_text())["watched"] == []
    (alert,) = later.loop.open()
    assert "/srv" not in alert.sentence


def test_a_run_that_goes_on_after_failing_is_told_and_so_is_its_new_end(watcher, live):
    watch = watcher(settle=0.0)
    watch.look()
    live.ledger.event("failed", "it failed")
    assert watch.look() == [("open", "pilot", "run-failed", "")]
    live.ledger.event("plan", "plan aaaaaaaaaaaa: lora on embedded", digest="a" * 64)
    assert watch.look() == [("over", "pilot", "run-failed", "")]
    live.ledger.event("finished", "run finished")
    assert watch.look() == [("open", "pilot", "run-finished", "")]
    assert watch.look(later=100 * 3600.0) == [], "nobody is reminded of an end"


def test_runs_that_ended_before_anybody_watched_are_left_alone(watcher, page_centre, live):
    live.ledger.event("finished", "run finished")
    watch = watcher()
    assert watch.look() == []
    assert watch.look(later=120.0) == []


def test_a_run_that_ends_between_two_looks_is_told(watcher, page_centre):
    watch = watcher()
    assert watch.look() == []
    run = page_centre.run("quick", ["north"], began=time.time())
    run.enrol()
    run.ledger.event("failed", "it failed")
    watch.runs._looked = -2.0
    assert watch.look() == [("open", "quick", "run-failed", "")]
    assert watch.look() == []


def test_a_run_that_nobody_works_on_is_told_after_two_minutes(watcher, page_centre, live):
    watch = watcher(settle=0.0)
    watch.look()
    page_centre.close()  # its process dies
    assert watch.look() == []
    assert watch.look(later=119.0) == []
    assert watch.look(later=2.0) == [("open", "pilot", "run-idle", "")]


def test_a_run_that_is_removed_is_forgotten(watcher, page_centre, live, tmp_path):
    page_centre.hear("north", ago=400.0)
    watch = watcher()
    watch.look()
    page_centre.close()
    live.ledger.close()
    (page_centre.folder.runs / "pilot").rename(tmp_path / "elsewhere")
    watch.runs._looked = -2.0
    assert watch.look() == []
    assert watch.loop.open() == []


def test_a_ledger_that_cannot_be_read_is_said_once_and_other_runs_are_watched(
    watcher, page_centre, live, caplog
):
    broken = page_centre.folder.runs / "broken"
    broken.mkdir()
    (broken / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    page_centre.hear("north", ago=400.0)
    watch = watcher()
    assert watch.look() == [("open", "pilot", "site-silent", "north")]
    watch.look(later=70.0)
    assert caplog.text.count("cannot look at run broken") == 1
    assert str(page_centre.folder.root) not in caplog.text


def test_a_site_that_flaps_is_one_alert(watcher, page_centre, live):
    watch, told = watcher(), []
    for step in range(12):
        page_centre.hear("north", ago=301.0 - watch.skew if step % 2 else -watch.skew)
        told += watch.look(later=20.0)
        for site in ("south", "east"):
            page_centre.hear(site, ago=-watch.skew)
    assert told == [("open", "pilot", "site-silent", "north")]


def test_started_it_posts_to_a_real_receiver_and_stops_at_once(
    page_centre, live, make_receiver, secret_file, tmp_path
):
    receiver = make_receiver()
    table = {
        "every": 0.1,
        "webhook": {"url": receiver.url, "secret_file": str(tmp_path / secret_file("0123456789abcdef"))},
    }
    page_centre.hear("north", ago=400.0)
    runs = Runs.of_centre(page_centre.folder)
    loop = make_loop(runs, table, page_centre.folder.root, "centre-a")
    assert loop is not None
    loop.start()
    end = time.monotonic() + 10.0
    while not receiver.received and time.monotonic() < end:
        time.sleep(0.02)
    began = time.monotonic()
    loop.stop()
    assert time.monotonic() - began < 2.0
    runs.close()
    (got,) = receiver.received
    told = json.loads(got.body)
    assert (told["status"], told["centre"], told["rule"], told["site"]) == (
        "open",
        "centre-a",
        "site-silent",
        "north",
    )
    assert "X-Fedcxr-Signature" in got.headers
    book = json.loads((page_centre.folder.root / "alerts.json").read_text())
    assert book["pending"] == []
    assert "secret-path" not in json.dumps(book)


def test_only_what_is_grave_enough_goes_to_a_channel(page_centre, live, make_receiver):
    receiver = make_receiver()
    runs = Runs.of_centre(page_centre.folder)
    loop = make_loop(runs, {"webhook": {"url": receiver.url, "least": "critical"}}, page_centre.folder.root)
    assert loop is not None
    page_centre.hear("north", ago=400.0)
    assert [n.alert.rule for n in loop.look()] == ["site-silent"]
    live.ledger.event("failed", "it failed")
    loop.look()
    pending = json.loads((page_centre.folder.root / "alerts.json").read_text())["pending"]
    assert [p["notice"]["alert"]["rule"] for p in pending] == ["run-failed"]
    runs.close()


def test_without_anybody_to_tell_there_is_no_loop_and_that_is_said(page_centre, caplog):
    runs = Runs.of_centre(page_centre.folder)
    assert make_loop(runs, {"site_silent": 60}, page_centre.folder.root) is None
    assert "nobody is told" in caplog.text
    with pytest.raises(ConfigError, match=r"alerts\.nothing"):
        make_loop(runs, {"nothing": 60}, page_centre.folder.root)


def test_of_two_monitors_one_tells_and_the_other_takes_over(page_centre, live, make_receiver):
    receiver = make_receiver()
    runs = Runs.of_centre(page_centre.folder)
    table = {"every": 0.1, "settle": 0, "webhook": {"url": receiver.url}}
    loops = [make_loop(runs, table, page_centre.folder.root) for _ in range(2)]
    page_centre.hear("north", ago=400.0)

    def told(count):
        end = time.monotonic() + 10.0
        while len(receiver.received) < count and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.4)
        return [(t["status"], t["site"]) for t in (json.loads(got.body) for got in receiver.received)]

    for loop in loops:
        loop.start()
    assert told(1) == [("open", "north")]
    loops[0].stop()
    page_centre.hear("south", ago=400.0)
    assert told(2) == [("open", "north"), ("open", "south")]
    loops[1].stop()
    runs.close()
