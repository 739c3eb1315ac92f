"""What a site tells for calibration, and of which findings it is silent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from client.calibrate import own_bias, platt_metrics
from common.errors import DataError
from common.metrics.platt import PlattSums, calibrated, logits, site_sums, targets

FINDINGS = ("effusion", "nodule", "hernia")
ASKED = {"effusion": (0.8, -1.0), "nodule": (0.0, 0.0), "hernia": (1.0, 0.0)}


def site(n=200):
    """Scores and labels ``[n, 3]``: hernia in nobody, nodule not always annotated."""
    generator = np.random.default_rng(0)
    labels = (generator.random((n, 3)) < [0.4, 0.3, 0.0]).astype(np.float32)
    labels[::5, 1] = np.nan
    return generator.random((n, 3)).astype(np.float32), labels


def test_the_sums_are_those_of_the_annotated_studies():
    scores, labels = site()
    told = platt_metrics(scores, labels, FINDINGS, ASKED, min_cell=11)
    known = ~np.isnan(labels[:, 1])
    expected = site_sums(logit(scores[known, 1].astype(float)), labels[known, 1], 0.0, 0.0)
    assert told["nodule.positives"] == (labels[:, 1] == 1).sum()
    assert told["nodule.negatives"] == (labels[:, 1] == 0).sum()
    assert told["nodule.platt"] == pytest.approx(expected.to_list(), abs=1e-6)
    PlattSums.from_list(told["effusion.positives"], told["effusion.negatives"], told["effusion.platt"])
    assert all(type(v) in (int, list) for v in told.values())
    assert all(type(v) is float for v in told["effusion.platt"])


@pytest.mark.parametrize(("positives", "told"), [(10, False), (11, True)])
def test_a_finding_of_too_few_studies_leaves_no_trace(positives, told):
    scores, labels = site()
    labels[:, 0] = 0.0
    labels[:positives, 0] = 1.0
    assert ("effusion.platt" in platt_metrics(scores, labels, FINDINGS, ASKED, 11)) is told
    labels[:, 0] = 1 - labels[:, 0]
    answer = platt_metrics(scores, labels, FINDINGS, ASKED, 11)
    assert ("effusion.negatives" in answer) is told
    assert not any(key.startswith("hernia") for key in answer)


def test_with_no_least_cell_a_finding_nobody_has_is_told():
    scores, labels = site()
    labels[:, 1] = np.nan
    answer = platt_metrics(scores, labels, FINDINGS, ASKED, 1)
    assert (answer["hernia.positives"], answer["hernia.negatives"]) == (0, 200)
    assert not any(key.startswith("nodule") for key in answer)


def test_only_what_was_asked_for_is_told():
    answer = platt_metrics(*site(), FINDINGS, {"nodule": (1.0, 0.0), "covid": (1.0, 0.0)}, 1)
    assert {key.split(".")[0] for key in answer} == {"nodule"}


def test_a_score_of_a_study_that_is_not_annotated_is_not_looked_at():
    scores, labels = site()
    scores[np.isnan(labels[:, 1]), 1] = np.nan
    assert "nodule.platt" in platt_metrics(scores, labels, FINDINGS, ASKED, 11)
    scores[0, 0] = np.nan
    with pytest.raises(DataError):
        platt_metrics(scores, labels, FINDINGS, ASKED, 11)
    with pytest.raises(DataError, match="studies, findings"):
        platt_metrics(scores, labels, FINDINGS[:2], ASKED, 11)


@pytest.mark.parametrize(("slope", "bias"), [(1.0, 0.0), (0.3, -4.0), (6.0, 30.0)])
def test_a_sites_own_bias_makes_its_mean_probability_what_it_observes(slope, bias):
    """Where the gradient in the bias is zero, as scipy finds it."""
    scores, labels = site()
    added = own_bias(scores, labels, np.full(3, slope), np.full(3, bias))
    assert added[2] == 0.0  # hernia: nobody has it
    for j in range(2):
        known = ~np.isnan(labels[:, j])
        z, y = logits(scores[known, j]), labels[known, j]
        high, low = targets(int(y.sum()), int((1 - y).sum()))
        wanted = np.where(y == 1, high, low).sum()
        root = brentq(lambda b, z, w: expit(slope * z + b).sum() - w, -200, 200, (z, wanted), xtol=1e-12)
        assert bias + added[j] == pytest.approx(root, abs=1e-7)
        before, after = scores[known, j], calibrated(scores[known, j], slope, bias + added[j])
        assert after.mean() == pytest.approx(y.mean(), abs=0.02)
        assert roc_auc_score(y, after) == roc_auc_score(y, before)


def test_a_site_with_one_class_or_without_studies_adds_nothing():
    scores, labels = site(20)
    for alike in (np.zeros_like(labels), np.ones_like(labels), np.full_like(labels, np.nan)):
        assert own_bias(scores, alike, np.ones(3), np.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    assert own_bias(scores[:0], labels[:0], np.ones(3), np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_an_own_bias_is_found_of_the_most_extreme_scores():
    scores = np.array([0.0, 1.0, 1.0, 0.0], dtype=np.float32)[:, None]
    added = own_bias(scores, np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([5.0]), np.array([2.0]))
    assert np.isfinite(added).all()
