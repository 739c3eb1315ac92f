"""Two runs side by side."""

from __future__ import annotations

from typing import Any

from server.facts.plan import plan_facts
from server.facts.records import ComparedSite, Comparison
from server.facts.runs import Run, summary
from server.facts.view import LedgerView


def compare(first: Run, second: Run, now: float) -> Comparison:
    """Return where two runs' settings differ, and the federated model's result at every site of either."""
    plans = [plan_facts(run.view()) for run in (first, second)]
    settings = [plan.settings if plan is not None else {} for plan in plans]
    keys = [*settings[0], *(key for key in settings[1] if key not in settings[0])]
    told = [tuple(_text(of.get(key)) for of in settings) for key in keys]
    results = [_results(run.view()) for run in (first, second)]
    sites = sorted({site for of in results for site in of})
    return Comparison(
        first=summary(first, now),
        second=summary(second, now),
        settings={key: (a, b) for key, (a, b) in zip(keys, told, strict=True) if a != b},
        sites=tuple(
            ComparedSite(site, *results[0].get(site, (None, None)), *results[1].get(site, (None, None)))
            for site in sites
        ),
    )


def _results(view: LedgerView) -> dict[str, tuple[float | None, tuple[float, float] | None]]:
    """Site -> federated macro AUROC on its test studies and its interval."""
    found = view.evaluations("test", "federated").get("federated", {})
    return {site: (metrics.get("macro-auroc"), _pair(metrics)) for site, metrics in found.items()}


def _pair(metrics: dict[str, Any]) -> tuple[float, float] | None:
    value = metrics.get("macro-interval")
    return (float(value[0]), float(value[1])) if isinstance(value, list) and len(value) == 2 else None


def _text(value: object) -> str:
    """Write a setting as a plan would; empty where a run has no such setting.

    >>> _text(True), _text(0.5), _text(None)
    ('true', '0.5', '')
    """
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
