"""A courier delivers in order, tries again, outlives a dead receiver, and says so once."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest

from server.monitor.alerts import channels, courier
from server.monitor.alerts.book import Book
from server.monitor.alerts.channels import Webhook
from server.monitor.alerts.courier import Courier
from server.monitor.alerts.messages import Sender
from server.monitor.alerts.settings import WebhookSettings


@pytest.fixture
def deliver(tmp_path, now):
    """Starts a courier to a URL over a book; everything is stopped at the end."""
    made = []

    def start(url, book, clock=lambda: now):
        channel = Webhook(WebhookSettings(url=url), Sender("centre-a"), tmp_path)
        made.append(Courier(channel, book, clock, first_wait=0.02))
        made[-1].start()
        made[-1].wake()
        return made[-1]

    yield start
    for one in made:
        one.stop()


def wait_until(true, patience=10.0):
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def post(book, notice, count, now):
    for number in range(count):
        alerts = book.update(f"run{number}", [notice(run=f"run{number}").alert], now)
        book.post(alerts[0], ["webhook"])


def runs_in(receiver):
    return [json.loads(got.body)["run"] for got in receiver.received]


def test_it_fails_twice_and_then_succeeds_and_the_order_is_kept(
    deliver, make_receiver, notice, now, caplog, tmp_path
):
    caplog.set_level(logging.INFO)
    receiver = make_receiver(answer=lambda count: 503 if count <= 2 else 200)
    book = Book(tmp_path / "alerts.json")
    post(book, notice, 3, now)
    deliver(receiver.url, book)
    wait_until(lambda: not book.pending("webhook"))
    assert runs_in(receiver) == ["run0", "run0", "run0", "run1", "run2"]
    assert len({json.loads(got.body)["id"] for got in receiver.received}) == 3, "a message keeps its id"
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warnings == [
        "webhook to 127.0.0.1 does not get through; alerts are kept and tried again: it answered 503"
    ]
    assert "gets through again" in caplog.text
    assert "secret-path" not in caplog.text
    assert Book(tmp_path / "alerts.json").pending("webhook") == []


def test_a_dead_receiver_is_said_once_and_what_it_missed_is_delivered_by_the_next_monitor(
    deliver, make_receiver, notice, now, caplog, tmp_path
):
    gone = make_receiver()
    gone.close()
    book = Book(tmp_path / "alerts.json")
    post(book, notice, 2, now)
    book.save()
    dead = deliver(gone.url, book)
    wait_until(lambda: "does not get through" in caplog.text)
    time.sleep(0.2)
    dead.stop()
    assert caplog.text.count("does not get through") == 1
    later = Book(tmp_path / "alerts.json")
    receiver = make_receiver()
    deliver(receiver.url, later)
    wait_until(lambda: not later.pending("webhook"))
    assert runs_in(receiver) == ["run0", "run1"]


def test_a_receiver_that_hangs_holds_up_neither_the_book_nor_the_end(
    deliver, make_receiver, notice, now, monkeypatch
):
    monkeypatch.setattr(channels, "TIMEOUT", 15.0)
    receiver, book = make_receiver(answer=lambda count: None), Book(None)
    post(book, notice, 1, now)
    hanging = deliver(receiver.url, book)
    wait_until(lambda: receiver.received)
    began = time.monotonic()
    (second,) = book.update("other", [notice(run="other").alert], now)
    book.post(second, ["webhook"])
    assert time.monotonic() - began < 0.5
    hanging.stop(patience=0.1)
    assert time.monotonic() - began < 2.0
    assert len(book.pending("webhook")) == 2


def test_what_will_never_be_taken_is_given_up_and_the_next_goes_on(
    deliver, make_receiver, notice, now, caplog
):
    receiver, book = make_receiver(answer=lambda count: 400 if count == 1 else 200), Book(None)
    post(book, notice, 2, now)
    deliver(receiver.url, book)
    wait_until(lambda: not book.pending("webhook"))
    assert runs_in(receiver) == ["run0", "run1"]
    assert "gives up an alert: it answered 400" in caplog.text


def test_after_a_day_it_is_old_news(deliver, make_receiver, notice, now, caplog):
    receiver, book = make_receiver(), Book(None)
    post(book, notice, 1, now)
    deliver(receiver.url, book, clock=lambda: now + courier.GIVE_UP + 1)
    wait_until(lambda: not book.pending("webhook"))
    assert not receiver.received
    assert "a day has passed" in caplog.text


def test_waits_between_tries_double_up_to_five_minutes(deliver, make_receiver, notice, now, monkeypatch):
    waits = []

    class Impatient(threading.Event):
        def wait(self, timeout=None):
            if timeout is not None:
                waits.append(timeout)
                return self.is_set()
            return super().wait()

    receiver, book = make_receiver(answer=lambda count: 500), Book(None)
    post(book, notice, 1, now)
    one = deliver(receiver.url, Book(None))
    one.stop()
    monkeypatch.setattr(courier.threading, "Event", Impatient)
    deliver(receiver.url, book)
    wait_until(lambda: len(waits) >= 17)
    assert waits[:3] == [0.02, 0.04, 0.08]
    assert waits[15:17] == [300.0, 300.0]
