"""Watch: real ledgers that grow, and whoever is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.facts.runs import Runs
from server.ledger import Ledger
from server.monitor import watch as watching
from server.monitor.watch import LEAST_REST, SHARE, Rest, Watch, most_rest


def change(runs: Path, run: str, text: str = "something") -> None:
    """Write an event to a run's ledger."""
    ledger = Ledger(runs / run / "ledger.sqlite")
    ledger.event("note", text)
    ledger.close()


@pytest.fixture
def watch(runs: Path) -> Any:
    """A watch over the runs that a test polls itself."""
    shown = Runs.of_folder(runs)
    yield Watch(shown, late=20.0, silent=60.0)
    shown.close()


def test_a_change_is_seen_once_and_of_its_run_alone(watch: Watch, runs: Path) -> None:
    assert set(watch.poll()) == {"first", "second"}
    assert watch.poll() == {}
    before = watch.revision("first"), watch.revision("second")
    change(runs, "first")
    assert watch.poll() == {"first": watch.revision("first")}
    assert watch.revision("first") > before[0] and watch.revision("second") == before[1]
    assert watch.poll() == {} and watch.revision("none") == 0


def test_a_commit_that_a_slow_disk_holds_up_is_seen(
    watch: Watch, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files change before the disk is waited for, and do not once more when the commit can be read."""
    watch.poll()
    os.utime(runs / "first" / "ledger.sqlite")
    assert watch.poll() == {}
    still = watching.stamp_of(SimpleNamespace(folder=runs / "first"))  # type: ignore[arg-type]
    monkeypatch.setattr(watching, "stamp_of", lambda run: still)
    watch.poll()
    change(runs, "first")
    assert watch.poll() == {"first": watch.revision("first")}
    monkeypatch.setattr(watching, "SETTLED", 0.0)
    change(runs, "first")
    assert watch.poll() == {}, "of files that have lain still long the ledger is not asked"


def test_runs_come_and_go(watch: Watch, runs: Path) -> None:
    watch.poll()
    (runs / "third").mkdir()
    change(runs, "third")
    shutil.rmtree(runs / "second")
    time.sleep(1.1)  # the disk is looked at once a second
    assert set(watch.poll()) == {"second", "third"}
    assert watch.poll() == {}


def test_a_run_without_a_ledger_yet_stops_no_other(watch: Watch, runs: Path, caplog: Any) -> None:
    (runs / "begun").mkdir()
    (runs / "begun" / "plan.toml").write_text("")
    (runs / "broken").mkdir()
    (runs / "broken" / "ledger.sqlite").write_bytes(b"not a ledger" * 100)
    assert {"first", "second"} <= set(watch.poll())
    change(runs, "first")
    assert set(watch.poll()) == {"first"}
    watch.poll()
    assert caplog.text.count("run broken cannot be read") <= 1
    change(runs, "begun")
    assert "begun" in watch.poll()


def test_what_is_old_and_unwatched_is_polled_seldom(
    watch: Watch, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    real = watching.stamp_of

    def counted(run: Any) -> Any:
        looked.append(run.key)
        return real(run)

    monkeypatch.setattr(watching, "stamp_of", counted)
    monkeypatch.setattr(watching, "LIVE_FOR", 0.0)
    for _ in range(20):
        watch.poll()
    assert looked.count("first") == 1

    async def look_on() -> None:
        subscription = watch.subscribe("first")
        for _ in range(20):
            watch.poll()
        watch.leave(subscription)

    asyncio.run(look_on())
    assert looked.count("first") == 21 and looked.count("second") == 1


def test_a_site_that_falls_silent_is_news_although_no_ledger_changes() -> None:
    now, heard = [1000.0], {"north": 995.0, "east": 990.0}
    folder = Path("nowhere")
    view = SimpleNamespace(revision=lambda: 7)
    run = SimpleNamespace(key="r", folder=folder, steady=False, view=lambda: view, heard=lambda: dict(heard))
    watch = Watch(SimpleNamespace(list=lambda: [run]), 20.0, 60.0, lambda: now[0])  # type: ignore[arg-type]

    async def look_on() -> None:
        watch.subscribe("r")
        watch.poll()
        assert watch.poll() == {}
        now[0] += 12.0  # east has been silent for 22 s
        assert watch.poll() == {"r": 7}
        assert watch.poll() == {}
        now[0] += 40.0  # east for 62 s, north for 57 s: late
        assert watch.poll() == {"r": 7}
        heard["east"] = now[0]
        assert watch.poll() == {"r": 7}

    asyncio.run(look_on())


def test_subscribers_and_listeners_are_told_from_the_thread(watch: Watch, runs: Path) -> None:
    told: list[dict[str, int]] = []
    watch.listen(lambda changes: told.append(dict(changes)))

    async def look_on() -> None:
        one, everything = watch.subscribe("first"), watch.subscribe()
        watch.start()
        await asyncio.wait_for(everything.changed.wait(), 5)
        one.take(), everything.take()
        await asyncio.to_thread(change, runs, "second")
        await asyncio.wait_for(everything.changed.wait(), 5)
        assert set(everything.take()) == {"second"} and not one.news
        await asyncio.to_thread(change, runs, "first")
        await asyncio.wait_for(one.changed.wait(), 5)
        assert set(one.take()) == {"first"}
        await asyncio.to_thread(watch.stop)
        await asyncio.wait_for(one.changed.wait(), 5)
        assert one.over and watch.subscribe().over

    asyncio.run(look_on())
    assert [set(changes) for changes in told] == [{"first", "second"}, {"second"}, {"first"}]
    assert not [thread for thread in threading.enumerate() if thread.name == "watch" and thread.is_alive()]


def test_a_fault_in_it_does_not_end_it(runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(watching, "IDLE_INTERVAL", 0.1)
    shown = Runs.of_folder(runs)
    failing = {"left": 2}

    def flaky(real: Callable[[], Any] = shown.list) -> Any:
        if failing["left"]:
            failing["left"] -= 1
            raise ValueError("a fault")
        return real()

    watch = Watch(SimpleNamespace(list=flaky), 20.0, 60.0)  # type: ignore[arg-type]
    done = threading.Event()
    watch.listen(lambda _: done.set())
    watch.start()
    assert done.wait(10)
    watch.stop()
    shown.close()
    assert caplog.text.count("following the runs failed") == 2


def test_streams_rest_so_long_that_watchers_cost_a_hundredth_of_a_core() -> None:
    now, spent = 100.0, 7.0
    rest = Rest(lambda: 50, clock=lambda: now, processor=lambda: spent)
    assert rest.left(-1) == 0.0, "whoever has not spoken yet may"
    assert rest.left(0) == LEAST_REST, "nothing was spent yet"
    spent += 0.04
    now = 101.5
    assert rest.left(0) == pytest.approx(0.04 / SHARE - 1.5), "what was spent meanwhile counts"
    now = 104.0
    assert rest.left(0) == 0.0 and rest.turn == 1, "whoever comes first begins the turn"
    now = 104.5
    assert rest.left(0) == 0.0 and rest.turn == 1, "the others speak in it"
    assert rest.left(1) == pytest.approx(LEAST_REST - 0.5), "and then rest for the same moment"
    spent += 4.0
    assert rest.left(1) == pytest.approx(most_rest(50) - 0.5), "not for ever, whatever it cost"
    now = 134.0
    assert rest.left(1) == 0.0
    assert rest.left(2) == LEAST_REST, "a turn is over once it is paid for"


def test_the_processor_time_of_every_thread_counts() -> None:
    now = 100.0
    rest = Rest(lambda: 50, clock=lambda: now)
    worker = threading.Thread(target=lambda: sum(k * k for k in range(3_000_000)))
    worker.start()
    worker.join()
    assert LEAST_REST < rest.left(0) <= most_rest(50)
