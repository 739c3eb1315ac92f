"""Two ways of doing the same work, timed in turns on one machine: a ratio and its spread, never a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """How many times as long the second way took as the first."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g}, {self.pairs} pairs)"


def paired(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> list[tuple[float, float]]:
    """Return the seconds of both ways for each pair; who goes first changes from pair to pair."""
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        if number % 2:
            b, a = seconds(second), seconds(first)
        else:
            a, b = seconds(first), seconds(second)
        times.append((a, b))
    return times


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(times: Sequence[tuple[float, float]]) -> Ratio:
    """Return second / first: the geometric mean over the pairs, and its interval by resampling them.

    >>> ratio([(1.0, 2.0), (2.0, 4.0)])
    Ratio(value=2.0, low=2.0, high=2.0, pairs=2)
    """
    logs = np.log([b / a for a, b in times])
    drawn = np.random.default_rng(0).integers(0, len(logs), (_RESAMPLES, len(logs)))
    low, high = np.percentile(logs[drawn].mean(axis=1), [2.5, 97.5])
    value, low, high = (round(float(np.exp(x)), 12) for x in (logs.mean(), low, high))
    return Ratio(value, low, high, len(logs))
