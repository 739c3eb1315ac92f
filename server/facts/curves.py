"""One figure over the rounds at every site, with the sites' mean, spread and worst."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.facts.recent import Recent
from server.facts.records import Curve
from server.facts.view import LATE, LedgerView

_FIRST = ("auroc", "pr-auc", "loss", "ece")
_ORDER = (
    *_FIRST, "update-norm", "codec-error", "cosine", "weight", "seconds", "up", "down", "payload",
    "examples", "steps",
)  # fmt: skip
_HIGHER = {"auroc", "pr-auc", "cosine", "weight", "examples", "steps"}
_LINES = 6
"""Curves whose points are kept; one of fifty sites over five hundred rounds takes half a megabyte."""
_SPREAD = 4
"""Sites from which the spread is given by quartiles."""

Floats = NDArray[np.float64]


class Lines:
    """The points of the curves drawn last, of which only rounds that are new are read."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], dict[str, tuple[array[int], array[float]]]] = OrderedDict()
        self._generation: Any = None

    def update(self, view: LedgerView) -> None:
        """Forget what was measured before a run went back behind rounds."""
        generation = view.get("generation")
        if generation != self._generation:
            self._kept.clear()
            self._generation = generation

    def of(self, view: LedgerView, metric: str, finding: str) -> dict[str, list[tuple[int, float]]]:
        """Return site -> (round, value) in the order of rounds."""
        kept = self._kept.setdefault((metric, finding), {})
        self._kept.move_to_end((metric, finding))
        if len(self._kept) > _LINES:
            self._kept.popitem(last=False)
        read = max((rounds[-1] for rounds, _ in kept.values() if rounds), default=-1) - LATE
        for rounds, values in kept.values():
            while rounds and rounds[-1] > read:
                del rounds[-1], values[-1]
        for site, points in view.series(metric, finding, after=read).items():
            rounds, values = kept.setdefault(site, (array("q"), array("d")))
            rounds.extend(number for number, _ in points)
            values.extend(value for _, value in points)
        return {site: [*zip(*columns, strict=True)] for site, columns in kept.items()}


def metrics_of(view: LedgerView) -> list[str]:
    """Return the metrics that can be drawn, the ones looked at most first."""
    with view.still():
        known = {*view.names()}
        return [name for name in _ORDER if name in known and view.of_sites(name)]


def findings_of(view: LedgerView, metric: str) -> list[str]:
    """Return the findings that a metric can be drawn of, in the plan's order."""
    with view.still():
        known = {*view.findings(metric)}
        config = view.config()
    planned = config.data.findings if config is not None else ()
    return [*(f for f in planned if f in known), *sorted(known - {*planned})]


def curve(view: LedgerView, metric: str, finding: str = "") -> Curve:
    """Return a metric over the rounds; where nothing is known, without rounds.

    Each site counts once in the mean. What a round lacks (a site that was not asked, a finding that
    it does not annotate) is ``None``.
    """
    with view.still():
        lines = view.keep(Lines)
        return view.keep(Recent).of(
            ("curve", metric, finding), lambda: over_sites(lines.of(view, metric, finding), metric, finding)
        )


def over_sites(series: Mapping[str, Sequence[tuple[int, float]]], metric: str, finding: str = "") -> Curve:
    """Put the sites' (round, value) together; what is told of '', the federation, is left out."""
    series = {site: points for site, points in series.items() if site}
    better: Literal["higher", "lower"] = "higher" if metric in _HIGHER else "lower"
    rounds = sorted({number for points in series.values() for number, _ in points})
    if not rounds:
        return Curve(metric, finding, (), {}, (), (), (), (), (), better)
    names = sorted(series)
    place = {number: k for k, number in enumerate(rounds)}
    values = np.full((len(names), len(rounds)), np.nan)
    for row, name in enumerate(names):
        points = series[name]
        values[row, [place[number] for number, _ in points]] = [value for _, value in points]
    mean, low, high = _spread(values)
    worst_of = _worst(values, better)
    columns = range(len(rounds))
    return Curve(
        metric=metric,
        finding=finding,
        rounds=tuple(rounds),
        sites={name: _told(values[row]) for row, name in enumerate(names)},
        mean=_told(mean),
        low=_told(low),
        high=_told(high),
        worst=_told(values[worst_of, columns]),
        worst_site=tuple(names[k] for k in worst_of),
        better=better,
    )


def _spread(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return mean, lower and upper quartile of each column ``[S, R]``, NaN left out.

    Quartiles by linear interpolation (Hyndman and Fan 1996, type 7); with fewer than four values
    the smallest and the largest.
    """
    ordered = np.sort(values, axis=0)  # NaN comes last
    count = (~np.isnan(values)).sum(axis=0)
    last = np.maximum(count - 1, 0)
    mean = np.nansum(values, axis=0) / np.maximum(count, 1)
    mean[count == 0] = np.nan
    columns = np.arange(values.shape[1])

    def quantile(share: float) -> Floats:
        spot = np.where(count >= _SPREAD, share, round(share)) * last
        below = np.floor(spot).astype(int)
        above = np.minimum(below + 1, last)
        first = ordered[below, columns]
        quantiles: Floats = first + (spot - below) * (ordered[above, columns] - first)
        return quantiles

    return mean, quantile(0.25), quantile(0.75)


def _worst(values: Floats, better: str) -> NDArray[np.int64]:
    """Return the row of the worst value of each column; every round has one."""
    if better == "higher":
        values = -values
    rows: NDArray[np.int64] = np.argmax(np.where(np.isnan(values), -np.inf, values), axis=0)
    return rows


def _told(values: Floats) -> tuple[float | None, ...]:
    return tuple(None if value != value else value for value in values.tolist())
