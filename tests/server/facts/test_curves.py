"""Curves, beside what numpy makes of the same numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.facts.curves import curve, findings_of, metrics_of
from server.facts.runs import Runs
from server.facts.view import LedgerView
from server.ledger import Ledger, Measure

VALUES = st.floats(0, 1, allow_subnormal=False)
TABLES = st.integers(1, 7).flatmap(
    lambda sites: st.lists(
        st.lists(st.none() | VALUES, min_size=sites, max_size=sites).filter(any), min_size=1, max_size=6
    )
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=TABLES, metric=st.sampled_from(["auroc", "ece"]))
def test_mean_spread_and_worst(tmp_path_factory, table, metric) -> None:
    path = tmp_path_factory.mktemp("curve") / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.put_measures(
        Measure(metric, "edema", f"s{k}", number, value)
        for number, row in enumerate(table)
        for k, value in enumerate(row)
        if value is not None
    )
    ledger.close()
    with LedgerView(path) as view:
        drawn = curve(view, metric, "edema")
    assert drawn.rounds == tuple(
        number for number, row in enumerate(table) if any(v is not None for v in row)
    )
    for place, number in enumerate(drawn.rounds):
        known = {f"s{k}": v for k, v in enumerate(table[number]) if v is not None}
        assert {s: values[place] for s, values in drawn.sites.items() if values[place] is not None} == known
        values = [*known.values()]
        assert drawn.mean[place] == pytest.approx(np.mean(values))
        low, high = np.percentile(values, [25, 75]) if len(values) >= 4 else (min(values), max(values))
        assert drawn.low[place] == pytest.approx(low) and drawn.high[place] == pytest.approx(high)
        worst = min(values) if metric == "auroc" else max(values)
        assert drawn.worst[place] == worst == known[drawn.worst_site[place]]


def test_a_curve_that_grows_is_what_a_fresh_look_finds(tmp_path: Path) -> None:
    path, dice = tmp_path / "ledger.sqlite", np.random.default_rng(0)
    ledger = Ledger(path)

    def told(number: int, sites: str) -> list[Measure]:
        return [Measure("auroc", "", site, number, float(dice.random())) for site in sites]

    def rounds_of(kept: LedgerView) -> tuple[int, ...]:
        with LedgerView(path) as fresh:
            assert curve(kept, "auroc") == curve(fresh, "auroc")
        return curve(kept, "auroc").rounds

    with LedgerView(path) as kept:
        for number in range(1, 8):
            # Of the round before, some tell with this round only.
            late = told(number - 1, "cd" if number % 2 else "d")
            ledger.put_round({"round": number}, [*told(number, "ab"), *late])
            assert rounds_of(kept) == tuple(range(number + 1))
        ledger.put_evaluation("federated", "validation", "e", {"macro-auroc": 0.25})
        assert rounds_of(kept) == tuple(range(8))
        assert curve(kept, "auroc").sites["e"][-1] == 0.25
        ledger.reset_rounds(ledger.rounds()[:4])
        assert rounds_of(kept) == (0, 1, 2, 3, 4), "a run that goes back takes its curve with it"
        for metric in "pqrstu":  # pushes the curve out of what is kept
            curve(kept, metric)
        assert rounds_of(kept) == (0, 1, 2, 3, 4)
    ledger.close()


def test_a_metric_nobody_has_is_an_empty_curve(view: LedgerView) -> None:
    assert curve(view, "auroc", "scoliosis").rounds == ()
    assert curve(view, "nothing").sites == {}


def test_what_can_be_drawn(view: LedgerView) -> None:
    found = metrics_of(view)
    assert found[:4] == ["auroc", "pr-auc", "loss", "ece"]
    assert {"cosine", "weight", "update-norm", "up", "down", "seconds"} <= {*found}
    assert not {"lora-error", "aggregate-norm"} & {*found}, "the federation's are no site's"
    assert findings_of(view, "auroc") == ["cardiomegaly", "effusion", "edema", "consolidation"]
    assert findings_of(view, "loss") == []


def test_a_real_runs_validation_is_of_the_adapter_after_each_round(real: Path) -> None:
    run = Runs.of_folder(real).list()[0]
    ledger = Ledger(real / "ledger.sqlite")
    records, final = ledger.rounds(), ledger.evaluations("validation")["federated"]
    drawn = curve(run.view(), "auroc")
    assert drawn.rounds == (0, 1, 2, 3)
    for site, values in drawn.sites.items():
        assert values[:3] == tuple(r["validation_before"].get(site) for r in records)
        assert values[3] == final[site].get("macro-auroc")
    assert drawn.sites["east"][1] is None, "its answer of round 2 was not taken"
    for metric in ("auroc", "pr-auc", "ece"):
        by_finding = curve(run.view(), metric, "edema")
        assert {s: values[-1] for s, values in by_finding.sites.items()} == {
            s: m[f"edema.{metric}"] for s, m in final.items() if f"edema.{metric}" in m
        }
        assert 0 in by_finding.rounds
    assert "south" not in curve(run.view(), "ece", "cardiomegaly").sites, "it does not annotate it"
    overall = curve(run.view(), "ece").sites["north"]
    mean = math.fsum(
        curve(run.view(), "ece", f).sites["north"][0] for f in ("cardiomegaly", "effusion", "edema")
    )
    assert overall[0] == pytest.approx(mean / 3)
    ledger.close()
    run.close()


def test_a_ledger_of_schema_1_draws_what_its_records_tell(real: Path, copy_of) -> None:
    folder = copy_of(real)
    run = Runs.of_folder(real).list()[0]
    new = {metric: curve(run.view(), metric) for metric in metrics_of(run.view())}
    _make_old(folder)
    old = Runs.of_folder(folder).list()[0]
    assert metrics_of(old.view()) == [
        "auroc", "pr-auc", "loss", "ece", "update-norm", "weight", "payload", "examples", "steps",
    ]  # fmt: skip
    for metric in ("auroc", "loss", "update-norm", "weight", "payload", "examples", "steps"):
        assert curve(old.view(), metric) == new[metric]
    assert curve(old.view(), "ece").rounds == (3,), "only the last round's was measured apart"
    assert old.view().series("lora-error") == run.view().series("lora-error")
    assert old.view().newest("loss") == run.view().newest("loss")
    run.close()
    old.close()


def _make_old(folder: Path) -> None:
    import sqlite3

    db = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    db.execute("DROP TABLE measures")
    db.execute("DROP TABLE details")
    db.execute("UPDATE run SET value = '1' WHERE key = 'schema'")
    db.execute("DELETE FROM run WHERE key = 'generation'")
    db.close()
