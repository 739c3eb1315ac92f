"""The parts of a page, each a piece of HTML that can be sent again by itself.

`run_facts` gathers, `run_parts` writes. What both are told comes from `server.facts`; nothing is
computed here but choices, orders and short sums for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.facts import aggregation, curves, feed, matrix, plan, reliability, runs, sites
from server.facts.records import Aggregation, Curve, Reliability, RunSummary, SiteRow
from server.facts.tested import Tested
from server.figure_words import (
    curve_told,
    drift_told,
    lora_told,
    matrix_told,
    pairs_told,
    reliability_told,
    weights_told,
)
from server.monitor.address import Address, order
from server.monitor.files_there import downloads
from server.monitor.layout import environment
from server.monitor.wording import ACTIVE, metric_name, words

if TYPE_CHECKING:
    from server.facts.runs import Run
    from server.facts.view import LedgerView

SECTIONS = {
    "sites": "Sites",
    "curves": "Curves",
    "matrix": "Matrix and calibration",
    "aggregation": "Aggregation",
    "privacy": "Privacy",
    "events": "Events",
    "plan": "Plan",
    "downloads": "Downloads",
}
"""Section -> its name; privacy is shown only where a ledger has a measure of it."""

MAIN_METRICS = ("auroc", "pr-auc", "ece", "loss")
"""Metrics a click away; the others are in a list."""

BY_FINDING = frozenset({"auroc", "pr-auc", "ece"})
"""Metrics that are told for each finding too."""

STRIP = 30
"""Rounds in a row's strip of participation."""

_TABLE_ROUNDS, _SITE_ROUNDS = 12, 6
_ROUND_CHOICES = 50
_CONTACTS = ("connected", "late", "silent")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Strip:
    """A site's participation, short enough for a cell."""

    shown: tuple[str, ...]
    text: str


def strip(participation: Sequence[str]) -> Strip:
    """Shorten a participation to its newest rounds, and say in words what all of it was.

    >>> strip(["returned", "missing", "returned", "asked"])
    Strip(shown=('returned', 'missing', 'returned', 'asked'), text='2 of 3, 1 missed')
    """
    counts = Counter(participation)
    over = counts["returned"] + counts["missing"] + counts["rejected"]
    said = [f"{counts['returned']:,} of {over:,}"]
    said += [
        f"{counts[kind]} {word}"
        for kind, word in (("missing", "missed"), ("rejected", "rejected"))
        if counts[kind]
    ]
    shown = tuple(kind.replace(" ", "-") for kind in participation[-STRIP:])
    return Strip(shown, ", ".join(said))


_ORDERS: Mapping[str, Callable[[SiteRow], Any]] = {
    "name": lambda row: row.name,
    "contact": lambda row: order(None if row.heard is None else -row.heard),
    "studies": lambda row: order(row.train_studies),
    "participation": lambda row: order(_share(row.participation)),
    "norm": lambda row: order(row.update_norm),
    "cosine": lambda row: order(row.cosine),
    "weight": lambda row: order(row.weight),
    "bytes": lambda row: row.up,
    "seconds": lambda row: order(row.seconds),
    "auroc": lambda row: order(row.auroc),
    "gain": lambda row: order(row.gain and row.gain[0]),
    "personalised": lambda row: order(row.personalised_gain and row.personalised_gain[0]),
}


def _share(participation: Sequence[str]) -> float | None:
    counts = Counter(participation)
    over = counts["returned"] + counts["missing"] + counts["rejected"]
    return counts["returned"] / over if over else None


def sorted_sites(rows: Sequence[SiteRow], here: Address) -> list[SiteRow]:
    """Return the rows an address asks for, in its order; whoever lacks a figure stands last."""
    wanted = here.filter.strip().lower()
    kept = sorted((row for row in rows if wanted in row.name.lower()), key=lambda row: row.name)
    by = _ORDERS[here.sort]
    known = [row for row in kept if by(row) != order(None)]
    unknown = [row for row in kept if by(row) == order(None)]
    return sorted(known, key=by, reverse=here.descending) + unknown


def run_facts(run: Run, here: Address, now: float, late: float, silent: float) -> Facts:
    """Gather what the page of a run shows, all of one moment."""
    with run.view().still():
        facts = lively_facts(run, here, common_facts(run, now, late, silent))
        return facts | settled_facts(run, facts) | measured_facts(run, facts)


def common_facts(run: Run, now: float, late: float, silent: float) -> Facts:
    """Gather what may change with every event and is the same whatever a reader chose to look at."""
    view = run.view()
    with view.still():
        rows = sites.site_rows(run, now, late, silent)
        summary = runs.summary(run, now)
        facts: Facts = {
            "downloads": downloads(run),
            "epsilon": [(site, *points[-1]) for site, points in sorted(view.series("epsilon").items())],
            "findings": _findings(view, rows),
            "last_round": view.last_round(),
            "metrics": curves.metrics_of(view),
            "plan": plan.plan_facts(view),
            "worst": _worst(view, rows, summary),
        }
    shown = {
        "late": late,
        "now": now,
        "rows": rows,
        "silent": silent,
        "steady": run.steady,
        "summary": summary,
    }
    return facts | shown | _sums(facts | shown)


def lively_facts(run: Run, here: Address, common: Facts) -> Facts:
    """Add to what is common what one reader sees of the sites and events, and has to choose from."""
    rows, last = common["rows"], common["last_round"]
    here = here.of_run(common["metrics"], common["findings"], [row.name for row in rows], last)
    told = feed.feed(run.view(), limit=here.events + 1)
    rounds = range(last, max(last - _ROUND_CHOICES, 0), -1)
    if here.round is not None and here.round not in rounds:
        rounds = [*rounds, here.round]  # type: ignore[assignment]
    return common | {
        "by_finding": here.metric in BY_FINDING,
        "feed": told[: here.events],
        "here": here,
        "more_events": len(told) > here.events,
        "round_options": [("", f"newest ({last})"), *((number, str(number)) for number in rounds)],
        "sites": sorted_sites(rows, here),
    }


def settled_facts(run: Run, facts: Facts) -> Facts:
    """Gather what changes only with a round or an evaluation; ``facts`` are the lively ones."""
    view, here = run.view(), facts["here"]
    with view.still():
        combined = aggregation.aggregation(view, here.round)
        curve = curves.curve(view, here.metric, here.finding if here.metric in BY_FINDING else "")
    return {
        "aggregation": combined,
        "curve": curve,
        "curve_rows": _newest(curve, _TABLE_ROUNDS),
        "curve_told": curve_told(curve),
        "site_columns": _newest(curve, _SITE_ROUNDS),
        **_combined_told(combined),
    }


def measured_facts(run: Run, facts: Facts) -> Facts:
    """Gather what changes only with an evaluation; ``facts`` are the lively ones."""
    view, here = run.view(), facts["here"]
    with view.still():
        areas = matrix.matrix(view, here.finding)
        bins = _reliability(view, facts["findings"], here)
    return {
        "chosen_finding_only": bool(here.finding) and areas is not None,
        "matrix": areas,
        "matrix_told": matrix_told(areas) if areas else "",
        "reliability": bins,
        "reliability_told": reliability_told(bins) if bins else "",
    }


def _findings(view: LedgerView, rows: Sequence[SiteRow]) -> tuple[str, ...]:
    config = view.config()
    if config is not None:
        return config.data.findings
    return tuple(sorted({finding for row in rows for finding in row.findings}))


def _reliability(view: LedgerView, findings: Sequence[str], here: Address) -> Reliability | None:
    """Return the chosen finding's, or the first that has one."""
    for finding in [here.finding] if here.finding else findings:
        found = reliability.reliability(view, finding, here.site)
        if found is not None:
            return found
    return None


def _sums(facts: Facts) -> Facts:
    """Return what only the templates need: lists to choose from, short sums, rows of the tables."""
    rows = facts["rows"]
    others = [metric for metric in facts["metrics"] if metric not in MAIN_METRICS]
    contacts = Counter(row.contact for row in rows)
    return {
        "active": facts["summary"].standing.state in ACTIVE,
        "contacts": [(name, contacts[name]) for name in _CONTACTS if contacts[name]],
        "finding_options": [("", "all (macro)"), *((name, words(name)) for name in facts["findings"])],
        "main_metrics": [name for name in MAIN_METRICS if name in facts["metrics"]],
        "other_metrics": others,
        "other_options": [("", "choose"), *((name, metric_name(name)) for name in others)],
        "participation": {row.name: strip(row.participation) for row in rows},
        "personalised": any(row.personalised_gain for row in rows),
        "row_of": {row.name: row for row in rows},
        "rounds_so_far": max((len(row.participation) for row in rows), default=0),
        "site_count": len(rows),
        "site_options": [("", "all together"), *((row.name, row.name) for row in rows)],
        "strip": STRIP,
        "tested": any(row.gain for row in rows),
    }


def _combined_told(found: Aggregation | None) -> dict[str, str]:
    """Say the figures of an aggregation in words, for who cannot see them and where no script runs."""
    if found is None:
        return {}
    return {
        "weights_told": weights_told(found),
        "pairs_told": pairs_told(found) if found.pairs else "",
        "lora_told": lora_told(found.lora_error) if found.lora_error else "",
        "drift_told": drift_told(found) if found.drift else "",
    }


def _newest(curve: Curve | None, most: int) -> list[int]:
    """Return places of the newest rounds that somebody reported, the newest first."""
    if curve is None:
        return []
    told = [i for i, value in enumerate(curve.mean) if value is not None]
    return told[: -most - 1 : -1]


def _worst(view: LedgerView, rows: Sequence[SiteRow], summary: RunSummary) -> tuple[str, float, str] | None:
    """Return the worst site, its macro AUROC and which studies that is of: the same as the mean's."""
    known = [(row.auroc, row.name) for row in rows if row.auroc is not None]
    if summary.split == "test":
        known = [(area, site) for site, area in view.keep(Tested).macro["federated"].items()]
    if not known:
        return None
    value, name = min(known)
    return name, value, summary.split


def sections(made: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the sections of a run's page that have a part, in their order."""
    return [(key, name) for key, name in SECTIONS.items() if key in made]


COMMON = ("headline", "plan", "downloads")
"""Parts that say the same to every reader, and may change with every event."""
LIVELY = ("sites", "events")
"""Parts that may change with every event, and show what a reader chose."""
SETTLED = ("curves", "aggregation", "privacy")
"""Parts that change only with a round or an evaluation."""
MEASURED = ("matrix",)
"""Parts that change only with an evaluation."""


def run_parts(
    facts: Facts, wanted: Sequence[str] = (*COMMON, *LIVELY, *SETTLED, *MEASURED)
) -> dict[str, str]:
    """Write parts of a run's page, all of them unless some are named."""
    shown = [key for key in wanted if key != "privacy" or facts["epsilon"]]
    return {key: written(f"part_{key}", facts) for key in shown}


def titles(summary: RunSummary) -> dict[str, str]:
    """Return a run's name, and the title of its window, which says how far it is."""
    standing = summary.standing
    far = f"{standing.committed}/{standing.rounds} " if standing.state in ACTIVE else ""
    return {"name": summary.title, "title": f"{far}{summary.title} · fedcxr monitor"}


def written(template: str, facts: Mapping[str, Any]) -> str:
    """Write one part."""
    return environment().get_template(f"{template}.html.j2").render(facts).strip()


def overview_parts(summaries: Sequence[RunSummary], now: float) -> dict[str, str]:
    """Write the table of runs."""
    active = sum(summary.standing.state in ACTIVE for summary in summaries)
    return {"runs": written("part_runs", {"runs": summaries, "active": active, "now": now})}
