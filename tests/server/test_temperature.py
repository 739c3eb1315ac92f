"""One temperature over all sites is that of the pooled studies, and cannot undo class weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from client.calibrate import platt_metrics
from common.metrics.calibration import pooled_ece
from common.metrics.platt import MOST_EXCHANGES, calibrated, logits, targets
from server.calibrate import Calibration
from server.temperature import Temperature, TemperatureFit

FINDINGS = ("effusion", "nodule", "mass")


def weighted_scores(n=3000, seed=0, weight=15.0, sharpness=1.6):
    """Scores as of a network trained with a class weight: too high by log(weight), and too sure."""
    generator = np.random.default_rng(seed)
    share = np.array([0.3, 0.1, 0.05])
    labels = (generator.random((n, 3)) < share).astype(np.float32)
    odds = 2 * generator.normal(size=labels.shape) + 4 * labels - 2 + np.log(share / (1 - share))
    return expit(sharpness * (odds + np.log(weight))).astype(np.float32), labels


def exchange(fit, scores, labels, site, min_cell=1, silent=()):
    """Run the exchanges as two sides that share nothing but text; ``silent``: (site, from which on)."""
    while not fit.done:
        asked = json.loads(json.dumps(fit.ask()))
        answers = {}
        for k in np.unique(site):
            if any(k == who and fit.result.exchanges >= since for who, since in silent):
                continue
            rows = site == k
            told = platt_metrics(scores[rows], labels[rows], FINDINGS, asked, min_cell)
            answers[f"site-{k}"] = json.loads(json.dumps(told))
        assert fit.take(answers) == {}
    return fit.result


def pooled(scores, labels):
    """The slope that scipy finds on the pooled studies, with Platt's targets of the pooled counts."""
    z, t = [], []
    for j in range(labels.shape[1]):
        known = ~np.isnan(labels[:, j])
        y = labels[known, j]
        high, low = targets(int(y.sum()), int((1 - y).sum()))
        z.append(logits(scores[known, j]))
        t.append(np.where(y == 1, high, low))
    z, t = np.concatenate(z), np.concatenate(t)
    return minimize_scalar(
        lambda a: (np.logaddexp(0, a * z) - t * a * z).sum(), bounds=(0, 50), options={"xatol": 1e-12}
    ).x


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    weight=st.sampled_from([0.1, 1.0, 15.0]),
    sharpness=st.sampled_from([0.05, 0.5, 1.6, 6.0]),
    sites=st.integers(1, 5),
)
def test_it_is_what_scipy_finds_on_the_pooled_studies(seed, weight, sharpness, sites):
    scores, labels = weighted_scores(400, seed, weight, sharpness)
    labels[::3, 1] = np.nan
    site = np.random.default_rng(seed).integers(0, sites, 400)
    found = exchange(TemperatureFit(FINDINGS), scores, labels, site)
    assert not found.left and found.exchanges <= MOST_EXCHANGES
    assert found.slope == pytest.approx(pooled(scores, labels), rel=1e-5)
    assert len(found.sites) == len(np.unique(site)) and found.findings == FINDINGS


def test_it_leaves_class_weights_uncalibrated_where_platt_does_not():
    """Fitted on one half, measured on the other."""
    scores, labels = weighted_scores(8000)
    half, site = np.arange(8000) < 4000, np.arange(4000) % 4
    single = exchange(TemperatureFit(FINDINGS), scores[half], labels[half], site)
    both = exchange(Calibration(FINDINGS), scores[half], labels[half], site)
    test, truth = scores[~half], labels[~half]
    cooled = calibrated(test, np.full(3, single.slope), np.zeros(3))
    platt = calibrated(test, *map(np.array, both.of(FINDINGS)))
    before, after, best = (pooled_ece(p, truth) for p in (test, cooled, platt))
    assert before > 0.15 and after > 0.1 and best < 0.02
    for j in range(3):
        areas = {roc_auc_score(truth[:, j], p[:, j]) for p in (test, cooled, platt)}
        assert len(areas) == 1


def test_a_site_that_falls_silent_is_not_counted():
    scores, labels = weighted_scores(900)
    site = np.arange(900) % 3
    found = exchange(TemperatureFit(FINDINGS), scores, labels, site, silent=[(2, 2)])
    assert found.sites == ("site-0", "site-1")
    assert found.slope == pytest.approx(pooled(scores[site < 2], labels[site < 2]), rel=1e-5)


def test_a_finding_that_nobody_has_does_not_count():
    scores, labels = weighted_scores(600)
    labels[:, 2] = 0.0
    found = exchange(TemperatureFit(FINDINGS), scores, labels, np.arange(600) % 2)
    assert found.findings == FINDINGS[:2]
    assert found.slope == pytest.approx(pooled(scores[:, :2], labels[:, :2]), rel=1e-5)


def test_where_there_is_none_it_says_why():
    scores, labels = weighted_scores(300)
    site = np.zeros(300, dtype=int)
    upside_down = exchange(TemperatureFit(FINDINGS), 1 - scores, labels, site)
    assert upside_down == Temperature(1.0, (), (), upside_down.exchanges, upside_down.left)
    assert "do not rise" in upside_down.left
    assert "alike" in exchange(TemperatureFit(FINDINGS), np.full_like(scores, 0.5), labels, site).left
    assert "enough studies" in exchange(TemperatureFit(FINDINGS), scores, labels, site, min_cell=1000).left
    fit = TemperatureFit(FINDINGS)
    assert fit.take({"bad": {"effusion.platt": [1.0]}}) and fit.done
