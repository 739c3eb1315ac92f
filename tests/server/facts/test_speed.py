"""On a ledger of 500 rounds, 50 sites and 14 findings every fact is there before anybody notices."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.facts.aggregation import aggregation
from server.facts.compare import compare
from server.facts.curves import curve, metrics_of
from server.facts.feed import feed, feed_after
from server.facts.matrix import matrix
from server.facts.plan import plan_facts
from server.facts.recent import Recent
from server.facts.reliability import reliability
from server.facts.runs import Run, Runs, summary
from server.facts.sites import site_rows
from server.facts.standing import standing
from simulations.benchmarks.large_ledger import write_large_ledger

MILLISECONDS: dict[str, float] = {"curve": 60, "curve of a finding": 60}
"""Median; of whatever is not named: 30."""


def facts_of(run: Run) -> dict[str, Callable[[], Any]]:
    view, now = run.view(), time.time()
    return {
        "standing": lambda: standing(run, now),
        "summary": lambda: summary(run, now),
        "site rows": lambda: site_rows(run, now),
        "metrics": lambda: metrics_of(view),
        "curve": lambda: curve(view, "auroc"),
        "curve of a finding": lambda: curve(view, "ece", "edema"),
        "matrix": lambda: matrix(view, "edema"),
        "reliability": lambda: reliability(view, "edema"),
        "aggregation": lambda: aggregation(view),
        "feed": lambda: feed(view),
        "feed after": lambda: feed_after(view, 25_000),
        "plan": lambda: plan_facts(view),
        "compare": lambda: compare(run, run, now),
        "revision": view.revision,
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_large_ledger_is_read_at_once_and_kept_small(tmp_path: Path) -> None:
    write_large_ledger(tmp_path / "large", rounds=500, sites=50, findings=14)
    (run,) = Runs.of_folder(tmp_path).list()
    slow, view = {}, run.view()
    for name, call in facts_of(run).items():
        call()
        spent = []
        for _ in range(11):
            with view.still():
                view.keep(Recent).clear()
            began = time.thread_time()  # others may work on this machine too
            call()
            spent.append(1000 * (time.thread_time() - began))
        if statistics.median(spent) > MILLISECONDS.get(name, 30):
            slow[name] = spent
    assert not slow
    run.close()
    tracemalloc.start()
    for call in facts_of(run).values():
        call()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 40e6
    run.close()


def test_nothing_heavy_is_imported() -> None:
    modules = sorted(
        f"server.facts.{p.stem}" for p in Path("server/facts").glob("*.py") if p.stem != "__init__"
    )
    assert len(modules) > 10
    heavy = ("torch", "pandas", "matplotlib", "flwr", "timm", "peft", "sklearn", "scipy", "transformers")
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
