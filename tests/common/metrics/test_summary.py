"""A site's metrics: macro over defined findings, suppression, paired differences, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from common.errors import ConfigError, DataError
from common.metrics import compare_scores, evaluate_scores

FINDINGS = ["effusion", "nodule", "hernia"]


def cohort(n=300, signal=1.5, seed=0):
    """Scores and labels ``[n, 3]``: two findings with signal, one never present."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((n, 3)) < [0.3, 0.2, 0.0]).astype(np.float32)
    scores = expit(signal * labels - 1.0 + generator.normal(size=(n, 3))).astype(np.float32)
    labels[::7, 1] = np.nan
    return scores, labels, [i // 2 for i in range(n)]


def evaluate(scores, labels, patients, findings=FINDINGS, seed=1, **options):
    generator = np.random.default_rng(seed)
    return evaluate_scores(scores, labels, patients, findings, generator=generator, **options)


def test_points_are_scikit_learns_and_the_macro_skips_the_undefined():
    scores, labels, patients = cohort()
    site = evaluate(scores, labels, patients)
    known = ~np.isnan(labels[:, 1])
    effusion = roc_auc_score(labels[:, 0], scores[:, 0])
    nodule = roc_auc_score(labels[known, 1], scores[known, 1])
    assert site.findings["effusion"].auroc == pytest.approx(effusion)
    assert site.findings["nodule"].auroc == pytest.approx(nodule)
    assert site.macro_auroc == pytest.approx((effusion + nodule) / 2)
    assert site.findings["nodule"].positives + site.findings["nodule"].negatives == known.sum()
    low, high = site.macro_interval
    assert low < site.macro_auroc < high
    assert site.macro_se == pytest.approx((high - low) / 3.92, rel=0.15)


def test_a_finding_never_present_keeps_its_support_and_has_no_auroc():
    hernia = evaluate(*cohort()).findings["hernia"]
    assert (hernia.auroc, hernia.interval, hernia.pr_auc) == (None, None, None)
    assert (hernia.positives, hernia.negatives, hernia.prevalence) == (0, 300, 0.0)
    assert hernia.brier is not None


def test_calls_are_those_at_the_thresholds_and_their_mcc_scikit_learns():
    scores, labels, patients = cohort()
    site = evaluate(scores, labels, patients, thresholds=[0.4, None, 0.5])
    assert site.findings["effusion"].mcc == pytest.approx(
        matthews_corrcoef(labels[:, 0], scores[:, 0] >= 0.4)
    )
    assert site.findings["nodule"].mcc is None  # no threshold
    assert site.findings["hernia"].mcc is None  # a single class
    assert evaluate(scores, labels, patients).findings["effusion"].mcc is None
    calibrated = np.clip(scores * 0.1, 0, 1)
    other = evaluate(calibrated, labels, patients, ranked_by=scores, thresholds=[0.4, 0.4, 0.4])
    assert other.findings["effusion"].mcc == site.findings["effusion"].mcc
    few = evaluate(scores, labels, patients, thresholds=[0.4] * 3, min_cell=1000)
    assert few.findings["effusion"].mcc is None


def test_bins_say_which_cells_they_cover_only_where_asked():
    scores, labels, patients = cohort()
    for min_cell in (1, 11):
        told = evaluate(scores, labels, patients, min_cell=min_cell, histograms=True)
        bare = evaluate(scores, labels, patients, min_cell=min_cell)
        bins = told.findings["effusion"].bins
        assert bins and all(part.span is not None for part in bins)
        assert all(part.span is None for part in bare.findings["effusion"].bins)
        assert sum(part.positives for part in bins) == told.findings["effusion"].positives
    joined = [(b.studies, b.positives, b.mean) for b in bins]
    assert [(b.studies, b.positives, b.mean) for b in bare.findings["effusion"].bins] == joined


def test_small_cells_leave_no_trace():
    scores, labels, patients = cohort()
    positives = np.flatnonzero(labels[:, 1] == 1)
    labels[positives[10:], 1] = 0.0
    site = evaluate(scores, labels, patients, min_cell=11)
    nodule = site.findings["nodule"]
    assert (nodule.positives, nodule.negatives) == (0, 0)
    assert nodule.auroc is nodule.pr_auc is nodule.prevalence is nodule.ece is nodule.brier is None
    without = labels.copy()
    without[:, 1:] = np.nan
    assert site == evaluate(scores, without, patients, min_cell=11)
    assert evaluate(scores, labels, patients, min_cell=10).findings["nodule"].positives == 10


def test_nothing_annotated_is_nothing_said():
    scores, labels, patients = cohort(20)
    site = evaluate(scores, np.full_like(labels, np.nan), patients)
    assert site.studies == 20
    assert site.macro_auroc is site.macro_interval is site.macro_se is site.pooled_ece is None


def test_one_patient_has_no_interval():
    scores, labels, _ = cohort(40)
    site = evaluate(scores, labels, ["the only one"] * 40)
    assert site.macro_auroc is not None
    assert site.macro_interval is None and site.macro_se is None


def test_a_seed_gives_one_answer():
    case = cohort()
    assert evaluate(*case, seed=5) == evaluate(*case, seed=5)
    assert evaluate(*case, seed=5) != evaluate(*case, seed=6)


def test_pairing_narrows_the_interval_of_a_difference():
    scores, labels, patients = cohort()
    better = np.clip(scores + 0.05 * labels, 0, 1)
    better[np.isnan(better)] = scores[np.isnan(better)]
    macro, findings = compare_scores(
        better, scores, labels, patients, FINDINGS,
        replicates=400, generator=np.random.default_rng(0),
    )  # fmt: skip
    assert set(findings) == {"effusion", "nodule"}
    assert macro.interval[0] > 0
    assert macro.difference == pytest.approx(np.mean([d.difference for d in findings.values()]))
    alone = evaluate(scores, labels, patients, replicates=400)
    assert macro.se < 0.5 * alone.macro_se


def test_a_model_does_not_differ_from_itself():
    scores, labels, patients = cohort()
    macro, findings = compare_scores(
        scores, scores, labels, patients, FINDINGS,
        replicates=50, generator=np.random.default_rng(0),
    )  # fmt: skip
    assert (macro.difference, macro.interval, macro.se) == (0.0, (0.0, 0.0), 0.0)
    assert all(gap.difference == 0.0 for gap in findings.values())


def test_swapping_the_models_turns_the_sign():
    scores, labels, patients = cohort()
    other, _, _ = cohort(seed=9)
    gaps = [
        compare_scores(
            a, b, labels, patients, FINDINGS,
            replicates=60, generator=np.random.default_rng(4),
        )[0]
        for a, b in ((scores, other), (other, scores))
    ]  # fmt: skip
    assert gaps[0].difference == pytest.approx(-gaps[1].difference)
    assert gaps[0].interval == pytest.approx((-gaps[1].interval[1], -gaps[1].interval[0]))


def test_nothing_to_compare_is_none():
    scores, labels, patients = cohort(20)
    unknown = np.full_like(labels, np.nan)
    assert compare_scores(
        scores, scores, unknown, patients, FINDINGS,
        replicates=10, generator=np.random.default_rng(0),
    ) == (None, {})  # fmt: skip


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = norm.cdf(1.0 / np.sqrt(2))
    covered = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        labels = (np.arange(120) % 3 == 0).astype(np.float32)[:, None]
        scores = norm.cdf(labels + generator.normal(size=(120, 1))).astype(np.float32)
        site = evaluate(scores, labels, range(120), ["effusion"], seed=seed)
        covered += site.macro_interval[0] <= truth <= site.macro_interval[1]
    assert 0.90 <= covered / 200 <= 0.985


def test_bad_input_is_refused():
    scores, labels, patients = cohort(20)
    with pytest.raises(DataError, match=r"\[patients, findings\]"):
        evaluate(scores, labels, patients[:-1])
    with pytest.raises(ConfigError, match="at least 2"):
        compare_scores(
            scores, scores, labels, patients, FINDINGS,
            replicates=1, generator=np.random.default_rng(0),
        )  # fmt: skip
