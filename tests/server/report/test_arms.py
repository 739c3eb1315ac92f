"""Means over sites, paired comparisons, and the list of who lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.metrics import Difference, FindingMetrics, SiteMetrics
from server.report_arms import build_arm, build_comparison, find_worse, site_mean_interval

SES = st.lists(st.floats(0.0, 0.2), min_size=1, max_size=8)


def metrics(macro, effusion=None, se=0.02):
    finding = FindingMetrics(effusion, None, None, 0.2, 0.1, 0.1, 20, 80)
    return SiteMetrics(100, macro, None, None if macro is None else se, 0.05, {"effusion": finding})


@given(SES)
def test_the_interval_is_the_normal_one_of_a_mean_of_independent_sites(ses):
    low, high = site_mean_interval([0.5] * len(ses), ses)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 1.959963984540054 * np.linalg.norm(ses) / len(ses))


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    truth, ses = np.array([0.6, 0.7, 0.8, 0.9]), np.array([0.01, 0.05, 0.02, 0.03])
    drawn = truth + ses * generator.normal(size=(4000, 4))
    inside = [low <= truth.mean() <= high for low, high in
              (site_mean_interval(list(row), list(ses)) for row in drawn)]  # fmt: skip
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_without_sites_or_without_an_error_there_is_no_interval():
    assert site_mean_interval([], []) is None
    assert site_mean_interval([0.7, 0.8], [0.02, None]) is None
    with pytest.raises(DataError, match="2 values, 1 standard errors"):
        site_mean_interval([0.7, 0.8], [0.02])


def test_a_site_without_a_macro_enters_neither_mean_nor_worst():
    results = {"a": metrics(0.7), "b": metrics(None), "c": metrics(0.9)}
    arm = build_arm("", {"a": 5, "b": 5, "c": 5}, results)
    assert arm.site_mean_auroc == pytest.approx(0.8)
    assert (arm.worst_site.site, arm.worst_site.auroc) == ("a", 0.7)
    assert arm.sites["b"].macro_auroc is None


def test_nothing_defined_is_none_throughout():
    arm = build_arm("", {}, {"a": metrics(None)})
    assert arm.site_mean_auroc is arm.interval is arm.worst_site is None
    assert build_comparison({"a": None}) is None
    assert build_comparison({}) is None


def test_a_mean_auroc_does_not_reach_beyond_one():
    arm = build_arm("", {}, {"a": metrics(0.99), "b": metrics(1.0)})
    assert arm.interval[1] == 1.0


def test_a_single_sites_interval_is_its_own():
    gap = Difference(-0.02, (-0.07, 0.01), 0.02)
    assert build_comparison({"a": gap, "b": None}).site_mean.interval == gap.interval


def test_only_losses_are_listed_worst_first_and_certain_ones_marked():
    local = build_arm("", {}, {"a": metrics(0.8, 0.9), "b": metrics(0.7, 0.7)})
    federated = build_arm("", {}, {"a": metrics(0.75, 0.6), "b": metrics(0.7, 0.72)})
    macro = {"a": Difference(-0.05, (-0.11, 0.01), 0.03), "b": Difference(0.0, (-0.1, 0.1), 0.05)}
    findings = {
        "a": {"effusion": Difference(-0.3, (-0.4, -0.2), 0.05)},
        "b": {"effusion": Difference(0.02, (-0.01, 0.05), 0.02)},
    }
    worse = find_worse(local, federated, macro, findings)
    told = [(entry.site, entry.finding, entry.certain) for entry in worse]
    assert told == [("a", "effusion", True), ("a", "macro", False)]
    assert (worse[0].local, worse[0].federated) == (0.9, 0.6)
