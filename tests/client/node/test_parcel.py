"""Objects of a message travel a few at a time, and a failure is raised when nothing is under way any more."""

from __future__ import annotations

import threading
import time

import pytest

from client.node.parcel import AT_ONCE, for_each


def test_each_is_done_once_and_a_few_at_a_time() -> None:
    lock, under_way, most, done = threading.Lock(), 0, 0, []

    def work(name: str) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
            done.append(name)

    names = [f"{number:02d}" for number in range(20)]
    for_each(names, work)
    assert sorted(done) == names
    assert 1 < most <= AT_ONCE


def test_nothing_to_do_is_nothing() -> None:
    for_each([], lambda name: pytest.fail(name))


def test_the_first_error_is_raised_once_all_have_ended() -> None:
    ended: list[str] = []

    def work(name: str) -> None:
        if name == "b":
            time.sleep(0.05)
            raise ValueError(name)
        if name == "c":
            raise KeyError(name)
        time.sleep(0.1)
        ended.append(name)

    with pytest.raises(ValueError, match="b"):
        for_each(["a", "b", "c", "d"], work)
    assert sorted(ended) == ["a", "d"]
