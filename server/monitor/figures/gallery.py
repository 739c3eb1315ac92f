"""Every figure of the page by name: which facts it shows, and how they are drawn."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.facts.aggregation import aggregation
from server.facts.curves import curve as curve_of
from server.facts.curves import findings_of
from server.facts.history import History
from server.facts.matrix import matrix as matrix_of
from server.facts.means import finding_curves
from server.facts.records import Aggregation
from server.facts.reliability import reliability as reliability_of
from server.facts.runs import Run
from server.facts.sites import participation as participation_of
from server.monitor.figures import (
    compare,
    curve,
    drift,
    findings,
    lora_error,
    matrix,
    pairs,
    participation,
    reliability,
    traffic,
    weights,
)
from server.monitor.figures.query import Query
from server.monitor.figures.style import Figure

Drawn = Callable[[Run, Query], Figure | None]


def _curve(run: Run, query: Query) -> Figure | None:
    view = run.view()
    with view.still():
        abandoned = [*view.keep(History).abandoned]
    return curve.draw(curve_of(view, query.metric, query.finding), abandoned)


def _findings(run: Run, query: Query) -> Figure | None:
    view = run.view()
    with view.still():
        lines = finding_curves(view, query.metric, findings_of(view, query.metric), query.site)
    return findings.draw(query.metric, lines, query.site)


def _matrix(run: Run, query: Query) -> Figure | None:
    found = matrix_of(run.view(), query.finding)
    return None if found is None else matrix.draw(found)


def _reliability(run: Run, query: Query) -> Figure | None:
    found = reliability_of(run.view(), query.finding, query.site)
    return None if found is None else reliability.draw(found)


def _of_aggregation(draw: Callable[[Aggregation], Figure | None]) -> Drawn:
    def drawn(run: Run, query: Query) -> Figure | None:
        found = aggregation(run.view(), query.round)
        return None if found is None else draw(found)

    return drawn


def _traffic(run: Run, query: Query) -> Figure | None:
    view = run.view()
    return traffic.draw({way: dict(view.series(way, site="").get("", [])) for way in ("up", "down")})


def _participation(run: Run, query: Query) -> Figure | None:
    return participation.draw(participation_of(run, time.time()))


FIGURES: dict[str, Drawn] = {
    "curve": _curve,
    "findings": _findings,
    "matrix": _matrix,
    "reliability": _reliability,
    "weights": _of_aggregation(weights.draw),
    "pairs": _of_aggregation(pairs.draw),
    "lora-error": _of_aggregation(lora_error.draw),
    "drift": _of_aggregation(drift.draw),
    "traffic": _traffic,
    "participation": _participation,
}
"""Figure -> how it is drawn for a run; None where there is nothing to draw yet."""

CHOICES: dict[str, tuple[str, ...]] = {
    "curve": ("metric", "finding"),
    "findings": ("metric", "site"),
    "matrix": ("finding",),
    "reliability": ("finding", "site"),
    **dict.fromkeys(("weights", "pairs", "lora-error", "drift"), ("round",)),
    **dict.fromkeys(("traffic", "participation"), ()),
}
"""Figure -> the choices of a query that it depends on, by their names in `Query`."""

LIVELY = frozenset({"participation"})
"""Figures that change with an event; the others only with a round or an evaluation."""
MEASURED = frozenset({"matrix", "reliability"})
"""Of these others, those that change only with an evaluation."""


def compare_figure(first: Run, second: Run, query: Query) -> Figure | None:
    """Draw one figure of merit of two runs."""
    runs = [(run.key, curve_of(run.view(), query.metric, query.finding)) for run in (first, second)]
    return compare.draw(runs)
