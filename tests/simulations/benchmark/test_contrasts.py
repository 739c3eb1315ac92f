"""Contrasts by hand, and their intervals against scipy's bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from simulations.benchmark.contrasts import Estimate, Figures, Outcome, estimate, outcomes
from simulations.benchmark.grid import Contrast
from simulations.benchmark.results import Found
from simulations.benchmark.words import sentence, tally

Invented = Callable[..., Found]
NOWHERE = Path("nowhere")
VALUES = {
    ("lora", 0, "north"): 0.80, ("lora", 0, "south"): 0.70,
    ("lora", 1, "north"): 0.82, ("lora", 1, "south"): 0.60,
    ("head", 0, "north"): 0.75, ("head", 0, "south"): 0.70,
    ("head", 1, "north"): 0.70, ("head", 1, "south"): 0.65,
}  # fmt: skip


def contrast(metric: str = "auroc", **over: object) -> Contrast:
    return Contrast.model_validate(
        {"name": "LoRA against head", "first": {"variant": "lora"}, "second": {"variant": "head"}}
        | {"metric": metric, **over}
    )


def figures(found: Found, replicates: int = 2000) -> Figures:
    return Figures(found, lambda cell: NOWHERE, replicates)


def test_the_difference_wins_losses_and_ties_are_those_of_the_pairs(invented: Invented) -> None:
    (row,) = outcomes(contrast(), figures(invented(VALUES)))
    gaps = [0.05, 0.0, 0.12, -0.05]
    assert row.difference is not None
    assert row.difference.value == pytest.approx(np.mean(gaps))
    assert (row.wins, row.losses, row.ties, row.left_out) == (2, 1, 1, 0)
    assert (row.difference.seeds, row.difference.sites) == (2, 2)
    assert row.verdict == "unclear"


def test_of_an_error_the_lower_is_better(invented: Invented) -> None:
    (row,) = outcomes(contrast("ece"), figures(invented(VALUES)))
    assert (row.wins, row.losses) == (1, 2)
    shifted = {(v, s, site): 0.2 + 0.1 * (v == "head") for v, s, site in VALUES}
    (row,) = outcomes(contrast("ece"), figures(invented(shifted)))
    assert row.difference is not None and row.difference.value == pytest.approx(-0.1)
    assert row.verdict == "unclear" and row.difference.interval is None  # nothing varies: nothing to tell
    assert "ECE −0.100, lower is better" in sentence(row)


def test_a_failed_cell_leaves_its_pair_out_and_is_counted(invented: Invented) -> None:
    values = {key: value for key, value in VALUES.items() if key[:2] != ("lora", 1)}
    (row,) = outcomes(contrast(), figures(invented(values, extra=[("lora", 1)])))
    assert row.difference is not None and row.difference.value == pytest.approx(0.025)
    assert row.left_out == 1
    assert "1 pair of cells left out: one of the two failed." in sentence(row)


def test_without_any_pair_there_is_no_difference(invented: Invented) -> None:
    values = {key: value for key, value in VALUES.items() if key[0] == "head"}
    failed = [("lora", 0), ("lora", 1)]
    (row,) = outcomes(contrast(), figures(invented(values, extra=failed)))
    assert row.difference is None and row.verdict == "unclear"
    assert sentence(row).startswith("LoRA against head: nothing to compare.")
    assert (
        tally([row]) == "0 comparisons: 0 surely better, 0 surely worse, 0 within noise; 1 could not be made."
    )


def test_an_undefined_figure_leaves_its_site_out_of_the_pair(invented: Invented) -> None:
    values = {**VALUES, ("lora", 0, "south"): None}
    (row,) = outcomes(contrast(), figures(invented(values)))
    assert row.wins + row.losses + row.ties == 3
    assert row.difference is not None and row.difference.value == pytest.approx(np.mean([0.05, 0.12, -0.05]))


def test_arms_of_one_cell_are_compared_within_it(invented: Invented) -> None:
    same = contrast(first={"arm": "federated"}, second={"arm": "federated"})
    (row,) = outcomes(same, figures(invented(VALUES)))
    assert row.difference is not None and row.difference.value == 0.0 and row.ties == 4


@pytest.mark.parametrize("which", ["seeds", "sites"])
def test_with_one_of_the_other_the_interval_is_scipys(which: str) -> None:
    gaps = np.random.default_rng(4).normal(0.03, 0.05, size=12)
    units = {
        (i, "north") if which == "seeds" else (0, f"site-{i:02d}"): np.full(20_001, g)
        for i, g in enumerate(gaps)
    }
    ours = estimate(units)
    theirs = bootstrap(
        (gaps,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours is not None and ours.interval is not None
    assert ours.value == pytest.approx(gaps.mean())
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=0.0015)


def test_patients_alone_keep_their_own_spread() -> None:
    drawn = np.random.default_rng(6).normal(0.02, 0.01, size=5001)
    ours = estimate({(0, "north"): drawn})
    assert ours is not None and ours.value == drawn[0]
    assert ours.interval == pytest.approx(tuple(np.quantile(drawn[1:], [0.025, 0.975])))


def test_seeds_and_sites_are_drawn_each_by_itself() -> None:
    """The variance of a pigeonhole bootstrap of r_s + c_j is that of both means added up (Owen 2007)."""
    generator = np.random.default_rng(7)
    of_seed, of_site = generator.normal(size=8), generator.normal(size=6)
    units = {(s, f"site-{j}"): np.full(40_001, of_seed[s] + of_site[j]) for s in range(8) for j in range(6)}
    ours = estimate(units)
    assert ours is not None and ours.interval is not None
    spread = (of_seed.var() / 8 + of_site.var() / 6) ** 0.5
    assert (ours.interval[1] - ours.interval[0]) / (2 * 1.96) == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize(
    ("interval", "metric", "verdict", "said"),
    [
        ((0.01, 0.05), "auroc", "better", "lora is better"),
        ((-0.05, -0.01), "auroc", "worse", "head is better"),
        ((-0.01, 0.05), "auroc", "unclear", "no difference can be told"),
        ((0.01, 0.05), "pooled_ece", "worse", "head is better"),
        ((-0.05, -0.01), "pooled_ece", "better", "lora is better"),
        (None, "auroc", "unclear", "no difference can be told"),
    ],
)
def test_the_sentence_is_no_surer_than_the_interval(
    interval: tuple[float, float] | None, metric: str, verdict: str, said: str
) -> None:
    row = Outcome(contrast(metric), {"data.shots": 8}, Estimate(0.03, interval, 2, 2), wins=3, losses=1)
    assert row.verdict == verdict
    assert said in sentence(row) and "LoRA against head at data.shots 8" in sentence(row)
    assert "lora wins 3 of 4 pairs" in sentence(row)
