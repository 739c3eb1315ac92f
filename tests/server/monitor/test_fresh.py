"""Answers kept for all who ask: made once, bounded, and never a failure."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.monitor.fresh import Answer, Answers


def test_many_watchers_cost_one_computation() -> None:
    answers, made = Answers(), []
    gate = threading.Barrier(50)

    def make() -> bytes:
        made.append(1)
        time.sleep(0.1)
        return b"figures"

    def ask(_: int) -> object:
        gate.wait()
        return answers.get("key", make)

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(ask, range(50))) == {b"figures"}
    assert len(made) == 1


def test_answers_kept_are_bounded_in_bytes_and_the_oldest_goes_first() -> None:
    answers = Answers(most=10_000)
    for i in range(100):
        answers.get(i, lambda: b"x" * 1000)
        answers.get(0, lambda: b"y" * 1000)  # used all the time, so it stays
    assert answers.size <= 10_000
    before = answers.made
    answers.get(0, lambda: b"")
    answers.get(99, lambda: b"")
    assert answers.made == before
    answers.get(50, lambda: b"again")
    assert answers.made == before + 1


def test_a_failure_is_not_kept() -> None:
    answers = Answers()

    def fail() -> bytes:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - ours
        answers.get("key", fail)
    assert answers.get("key", lambda: b"fine") == b"fine"


def test_equal_bodies_have_equal_tags() -> None:
    assert Answer.of(b"a").tag == Answer.of(b"a").tag != Answer.of(b"b").tag
