"""What the page of two runs is told."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from server.facts import curves
from server.facts.compare import compare
from server.monitor.address import Address
from server.monitor.parts import BY_FINDING, Facts
from server.monitor.wording import metric_name, words

if TYPE_CHECKING:
    from server.monitor.state import Monitor


def compare_key(monitor: Monitor, first: str, second: str, here: Address) -> Hashable:
    """Name what a comparison depends on.

    Raises:
        RunError: if one of the runs is not there.
    """
    runs = [monitor.runs.find(key) for key in (first, second)]
    query = frozenset(here.pairs().items())
    return ("compare", *((run.key, run.view().revision()) for run in runs), query)


def compare_facts(monitor: Monitor, first: str, second: str, here: Address) -> Facts:
    """Gather what is shown of two runs.

    Raises:
        RunError: if one of them is not there.
    """
    runs = monitor.runs.find(first), monitor.runs.find(second)
    now = monitor.now()
    comparison = compare(*runs, now)
    metrics = list(dict.fromkeys(m for run in runs for m in curves.metrics_of(run.view())))
    configs = [config for run in runs if (config := run.view().config()) is not None]
    findings = tuple(dict.fromkeys(name for config in configs for name in config.data.findings))
    here = here.of_run(metrics, findings, [], 0)
    shared = [row for row in comparison.sites if row.first is not None and row.second is not None]
    return {
        "comparison": comparison,
        "finding_options": [("", "all (macro)"), *((name, words(name)) for name in findings)],
        "first_run": runs[0],
        "here": here,
        "by_finding": here.metric in BY_FINDING,
        "metric_options": [(name, metric_name(name)) for name in metrics],
        "now": now,
        "second_run": runs[1],
        "shared": shared,
    }
