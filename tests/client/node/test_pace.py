"""How often a centre is asked: soon after something happened, ever less while nothing does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.node.pace import LONGEST, RESPITE, SHARE, SHORTEST, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(0, 1e6), st.floats(0, 1e3))
def test_never_more_often_than_it_may_and_never_less_than_it_must(idle: float, took: float) -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now = idle
    wait = pace.wait(took)
    assert SHORTEST <= wait <= LONGEST
    assert wait == LONGEST or wait >= RESPITE * took, "a busy centre is given time"
    assert wait <= max(SHORTEST, SHARE * idle, RESPITE * took)


def test_something_that_happens_makes_it_quick_again() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now = 600.0
    assert pace.wait() == LONGEST
    pace.moved()
    assert pace.wait() == SHORTEST


def test_trouble_is_waited_out_once() -> None:
    pace = Pace(Clock())
    pace.hold()
    assert [pace.wait(), pace.wait()] == [LONGEST, SHORTEST]


def test_an_hour_of_nothing_costs_little_more_than_a_request_every_three_seconds() -> None:
    clock = Clock()
    pace, asked = Pace(clock), 0
    while clock.now < 3600.0:
        asked += 1
        clock.now += 0.01 + pace.wait(took=0.01)
    assert 1100 < asked < 1300
