"""Bins add up over sites, and their intervals are Wilson's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from server.facts.reliability import reliability, wilson
from server.facts.runs import Runs
from server.facts.view import LedgerView


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys(counts: tuple[int, int]) -> None:
    positives, studies = counts
    expected = binomtest(positives, studies).proportion_ci(method="wilson")
    assert wilson(positives, studies) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_sites_bins_are_those_it_sent(view: LedgerView) -> None:
    found = reliability(view, "edema", "north")
    assert found is not None and [*found.arms] == ["federated", "calibrated"]
    sent = view.evaluations("test")["federated"]["north"]
    bins = found.arms["federated"]
    assert [b.mean for b in bins] == pytest.approx(sent["edema.bins-mean"])
    assert [b.studies for b in bins] == sent["edema.bins-studies"]
    assert [b.positives for b in bins] == sent["edema.bins-positives"]
    assert all(b.share == b.positives / b.studies and b.interval[0] <= b.share <= b.interval[1] for b in bins)
    assert found.ece == {"federated": 0.11, "calibrated": 0.02}


def test_over_all_sites_no_study_is_lost_and_none_counted_twice(told) -> None:
    first = {"edema.bins-mean": [0.1, 0.9], "edema.bins-studies": [30, 10], "edema.bins-positives": [3, 9]}
    second = {"edema.bins-mean": [0.12, 0.5], "edema.bins-studies": [10, 20], "edema.bins-positives": [0, 11]}
    counts = {"edema.positives": 12, "edema.negatives": 28, "edema.ece": 0.1}
    told.ledger.put_evaluation("federated", "test", "a", {**first, **counts})
    told.ledger.put_evaluation(
        "federated", "test", "b", {**second, "edema.positives": 5, "edema.negatives": 5, "edema.ece": 0.2}
    )
    told.ledger.put_evaluation("local", "test", "c", {"edema.auroc": 0.7})
    told.ledger.put_evaluation("local:a", "test", "b", first)
    found = reliability(told.run.view(), "")
    assert found is not None and (found.finding, [*found.arms]) == ("edema", ["federated"])
    low, middle, high = found.arms["federated"]
    assert (low.studies, low.positives) == (40, 3) and low.mean == pytest.approx((0.1 * 30 + 0.12 * 10) / 40)
    assert (middle.studies, middle.positives, high.studies, high.positives) == (20, 11, 10, 9)
    assert found.ece["federated"] == pytest.approx((0.1 * 40 + 0.2 * 10) / 50)
    assert reliability(told.run.view(), "effusion") is None
    assert reliability(told.run.view(), "edema", "c") is None


@pytest.mark.parametrize(
    "bad",
    [
        {"edema.bins-mean": 0.5},
        {"edema.bins-mean": [0.5], "edema.bins-studies": [0], "edema.bins-positives": [0]},
        {"edema.bins-mean": [0.5], "edema.bins-studies": [3], "edema.bins-positives": [4]},
        {"edema.bins-mean": [7.0], "edema.bins-studies": [3], "edema.bins-positives": [1]},
    ],
)
def test_what_cannot_be_is_left_out(told, bad) -> None:
    told.ledger.put_evaluation("federated", "test", "a", bad)
    assert reliability(told.run.view(), "edema") is None


def test_a_real_runs_bins(real: Path) -> None:
    run = Runs.of_folder(real).list()[0]
    found = reliability(run.view(), "edema")
    assert found is not None and "federated" in found.arms
    tested = run.view().evaluations("test")["federated"]
    told = sum(m.get("edema.positives", 0) + m.get("edema.negatives", 0) for m in tested.values())
    assert sum(b.studies for b in found.arms["federated"]) == told > 0
    run.close()


def test_bins_too_fine_to_read_are_merged_and_wide_ones_are_not(told) -> None:
    fine = {"edema.bins-mean": [0.01, 0.02, 0.5], "edema.bins-studies": [1, 3, 2]}
    told.ledger.put_evaluation("federated", "test", "a", {**fine, "edema.bins-positives": [0, 1, 1]})
    wide = {"edema.bins-mean": [0.01, 0.02, 0.5], "edema.bins-studies": [22, 30, 25]}
    told.ledger.put_evaluation("federated", "test", "b", {**wide, "edema.bins-positives": [11, 11, 14]})
    many = {"edema.bins-mean": [i / 100 for i in range(20)], "edema.bins-studies": [30] * 20}
    told.ledger.put_evaluation("federated", "test", "c", {**many, "edema.bins-positives": [15] * 20})
    shown = {site: reliability(told.run.view(), "edema", site).arms["federated"] for site in "abc"}
    assert [(b.studies, b.positives) for b in shown["a"]] == [(4, 1), (2, 1)]
    assert [b.mean for b in shown["b"]] == [0.01, 0.02, 0.5]
    assert [b.studies for b in shown["c"]] == [210, 210, 180]
