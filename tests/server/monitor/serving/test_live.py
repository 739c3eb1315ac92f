"""Server-sent events over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.ledger import Ledger
from server.monitor import live, watch

Serve = Callable[..., Any]
PATIENCE = watch.most_rest(100) + 5
"""Seconds: a stream that has just told something may rest."""


class Listener:
    """Reads one stream on a thread, as a browser does."""

    def __init__(self, client: httpx.Client, path: str) -> None:
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.comments = 0
        self.ended = threading.Event()
        self.opened = threading.Event()
        self.status = 0
        self._client, self._path = client, path
        threading.Thread(target=self._read, daemon=True).start()
        assert self.opened.wait(10)

    def _read(self) -> None:
        try:
            with self._client.stream("GET", self._path, timeout=60) as stream:
                self.status = stream.status_code
                self.headers = stream.headers
                self.opened.set()
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        self.events.append((time.monotonic(), json.loads(line.removeprefix("data: "))))
                    elif line.startswith(":"):
                        self.comments += 1
        except httpx.HTTPError:
            pass
        finally:
            self.opened.set()
            self.ended.set()

    def wait_for(self, number: int) -> None:
        """Wait until so many events have come."""
        end = time.monotonic() + PATIENCE
        while len(self.events) < number:
            assert time.monotonic() < end, self.events
            time.sleep(0.02)

    def wait_for_revision(self, revision: int) -> None:
        """Wait until the last event tells of this revision."""
        end = time.monotonic() + PATIENCE
        while not self.events or self.events[-1][1]["revision"] != revision:
            assert time.monotonic() < end, self.events
            time.sleep(0.02)


def free_of_charge(page: Any) -> None:
    """Rest as if answers cost nothing: the test's own work, in this process, is not the monitor's."""
    page.monitor.watch.rest = watch.Rest(page.monitor.watch.watchers, processor=lambda: 0.0)


@pytest.fixture
def ledger(runs: Path) -> Iterator[Ledger]:
    """The ledger of the first run."""
    made = Ledger(runs / "first" / "ledger.sqlite")
    yield made
    made.close()


def test_a_commit_is_told_within_two_seconds_with_its_run_and_revision(served: Serve, ledger: Ledger) -> None:
    page = served(tls=True)
    free_of_charge(page)
    client = page.client()
    one, other, every = (
        Listener(client, path) for path in ("/runs/first/live", "/runs/second/live", "/live")
    )
    assert one.headers["content-type"].startswith("text/event-stream")
    assert one.headers["cache-control"] == "no-store"
    for listener in (one, other, every):
        listener.wait_for(1)
    time.sleep(1.5)  # what was new at the start is told
    counts = [len(listener.events) for listener in (one, other, every)]
    ledger.event("note", "a round ended")
    committed = time.monotonic()
    one.wait_for(counts[0] + 1)
    every.wait_for(counts[2] + 1)
    when, told = one.events[-1]
    assert when - committed < 2.0
    assert told == {"run": "first", "revision": page.monitor.runs.find("first").view().revision()}
    assert every.events[-1][1] == told and len(other.events) == counts[1]


def test_a_burst_is_one_event_a_second_and_the_last_word_is_told(served: Serve, ledger: Ledger) -> None:
    page = served()
    free_of_charge(page)
    listener = Listener(page.client(), "/runs/first/live")
    listener.wait_for(1)
    began = time.monotonic()
    while time.monotonic() < began + 3.0:
        ledger.event("note", "again")
        time.sleep(0.05)
    listener.wait_for_revision(page.monitor.runs.find("first").view().revision())
    times = [when for when, _ in listener.events]
    assert 2 <= len(times) <= 4 + time.monotonic() - began
    assert min((b - a for a, b in pairwise(times[2:])), default=1.0) > 0.9, "the first news come at once"


def test_silence_is_broken_by_a_comment(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT", 0.3)
    page = served()
    listener = Listener(page.client(), "/runs/second/live")
    time.sleep(2.5)
    assert listener.comments >= 2


def test_whoever_leaves_is_forgotten(served: Serve) -> None:
    page = served()
    client = page.client()
    for _ in range(5):
        with client.stream("GET", "/live") as stream:
            next(stream.iter_lines())
    end = time.monotonic() + 5
    while page.monitor.watch.watchers():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_too_many_streams_are_asked_to_come_again(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_STREAMS", 3)
    page = served()
    listeners = [Listener(page.client(), "/live") for _ in range(3)]
    answer = page.client().get("/live")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "30"
    assert page.client().get("/healthz").status_code == 200
    assert all(listener.status == 200 for listener in listeners)


@pytest.mark.slow
def test_a_hundred_watchers_are_told_and_cost_next_to_nothing(served: Serve, ledger: Ledger) -> None:
    page = served()
    limits = httpx.Limits(max_connections=None)
    client = httpx.Client(base_url=page.address, limits=limits, timeout=60)
    page.clients.append(client)
    listeners = [Listener(client, "/runs/first/live") for _ in range(100)]
    for listener in listeners:
        listener.wait_for(1)
    time.sleep(2.0)
    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    time.sleep(3.0)
    spent = (sum(process.cpu_times()[:2]) - before) / 3.0
    assert spent < 0.15, f"{spent:.2f} of a core while nothing happens, this test's 100 readers among it"
    counts = [len(listener.events) for listener in listeners]
    ledger.event("note", "a round ended")
    for listener, count in zip(listeners, counts, strict=True):
        listener.wait_for(count + 1)


def test_streams_end_when_the_monitor_stops(served: Serve) -> None:
    page = served()
    listeners = [Listener(page.client(), path) for path in ("/live", "/runs/first/live") for _ in range(10)]
    began = time.monotonic()
    page.server.should_exit = True
    page.thread.join(timeout=10)
    assert time.monotonic() - began < 2.0
    assert all(listener.ended.wait(2) for listener in listeners)
