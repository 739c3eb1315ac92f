"""Federated Platt scaling is pooled Platt scaling, whoever holds the studies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from client.calibrate import platt_metrics
from common.metrics.calibration import ece
from common.metrics.platt import MOST_EXCHANGES, calibrated, logits, targets
from server.calibrate import Calibration

FINDINGS = ("effusion", "nodule", "mass")


def weighted_scores(n=3000, seed=0, weight=15.0, sharpness=1.6, prevalence=(0.3, 0.1, 0.05)):
    """Scores as of a network trained with a class weight: too high by log(weight), and too sure."""
    generator = np.random.default_rng(seed)
    share = np.array(prevalence)
    labels = (generator.random((n, share.size)) < share).astype(np.float32)
    # Log odds of two Gaussians of standard deviation 2, four apart, and of the prevalence.
    odds = 2 * generator.normal(size=labels.shape) + 4 * labels - 2 + np.log(share / (1 - share))
    return expit(sharpness * (odds + np.log(weight))).astype(np.float32), labels


def split(n, sites, seed=0):
    return np.random.default_rng(seed).integers(0, sites, n)


def federate(scores, labels, site, *, min_cell=1, findings=FINDINGS, **options):
    """Run the exchanges as two sides that share nothing but text."""
    calibration = Calibration(findings[: labels.shape[1]], **options)
    while not calibration.done:
        asked = json.loads(json.dumps(calibration.ask()))
        answers = {
            f"site-{k}": json.loads(
                json.dumps(
                    platt_metrics(
                        scores[site == k], labels[site == k], findings[: labels.shape[1]], asked, min_cell
                    )
                )
            )
            for k in np.unique(site)
        }
        assert calibration.take(answers) == {}
    return calibration.result


def pooled(scores, labels, bias=True):
    """What scipy finds on one finding's pooled studies, with Platt's targets of the pooled counts."""
    known = ~np.isnan(labels)
    z, y = logits(scores[known]), labels[known]
    high, low = targets(int(y.sum()), int((1 - y).sum()))
    t = np.where(y == 1, high, low)

    def loss(x):
        u = x[0] * z + x[1] * bias
        r = expit(u) - t
        return (np.logaddexp(0, u) - t * u).sum(), np.array([(r * z).sum(), r.sum() * bias])

    def hessian(x):
        w = expit(x[0] * z + x[1] * bias)
        w = w * (1 - w)
        off = (w * z).sum() * bias
        return np.array([[(w * z * z).sum(), off], [off, w.sum() if bias else 1.0]])

    options = {"xtol": 1e-13, "maxiter": 200}
    found = minimize(loss, np.zeros(2), jac=True, hess=hessian, method="Newton-CG", options=options)
    return found.x


@pytest.mark.parametrize("bias", [True, False])
def test_federated_is_what_scipy_finds_on_the_pooled_studies(bias):
    scores, labels = weighted_scores()
    labels[::3, 1] = np.nan
    result = federate(scores, labels, split(len(labels), 5), bias=bias)
    assert result.left == {}
    assert result.exchanges <= (6 if bias else 9)
    for j, finding in enumerate(FINDINGS):
        slope, shift = pooled(scores[:, j], labels[:, j], bias)
        assert result.slope[finding] == pytest.approx(slope, abs=1e-6)
        assert result.bias[finding] == pytest.approx(shift, abs=1e-6)
        assert len(result.sites[finding]) == 5


def test_without_smoothing_federated_is_scikit_learns_logistic_regression():
    scores, labels = weighted_scores()
    result = federate(scores, labels, split(len(labels), 4), smooth=False)
    for j, finding in enumerate(FINDINGS):
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=200)
        model.fit(logits(scores[:, j])[:, None], labels[:, j])
        assert result.slope[finding] == pytest.approx(model.coef_[0, 0], abs=1e-6)
        assert result.bias[finding] == pytest.approx(model.intercept_[0], abs=1e-6)


def test_the_smoothed_fit_is_scikit_learns_sigmoid_calibration():
    scores, labels = weighted_scores(n=150)
    z = logits(scores[:, 0])[:, None]
    ranker = LogisticRegression().fit(z, labels[:, 0])
    theirs = CalibratedClassifierCV(FrozenEstimator(ranker), method="sigmoid").fit(z, labels[:, 0])
    result = federate(scores, labels, split(len(labels), 3))
    ours = calibrated(scores[:, 0], result.slope["effusion"], result.bias["effusion"])
    np.testing.assert_allclose(ours, theirs.predict_proba(z)[:, 1], atol=2e-4)


def test_the_mean_of_the_sites_own_fits_is_another_model():
    scores, labels = weighted_scores(n=600)
    site = split(600, 6)
    own = np.mean([pooled(scores[site == k, 2], labels[site == k, 2]) for k in range(6)], axis=0)
    together = pooled(scores[:, 2], labels[:, 2])
    assert np.abs(own - together).max() > 0.05
    result = federate(scores, labels, site)
    assert (result.slope["mass"], result.bias["mass"]) == pytest.approx(tuple(together), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_how_the_studies_are_split_does_not_matter(sites, seed, shuffle):
    scores, labels = weighted_scores(n=300, seed=seed % 7, prevalence=(0.3, 0.2))
    order = list(range(sites))
    shuffle.shuffle(order)
    site = split(300, sites, seed)
    result = federate(scores, labels, site)
    # The same sites under other names: not one bit differs.
    assert federate(scores, labels, np.array(order)[site]).of(FINDINGS[:2]) == result.of(FINDINGS[:2])
    for j in range(2):
        found = result.slope[FINDINGS[j]], result.bias[FINDINGS[j]]
        assert found == pytest.approx(tuple(pooled(scores[:, j], labels[:, j])), abs=1e-6)


def test_platt_mends_what_a_temperature_cannot_and_ranks_stay():
    fitted, held = weighted_scores(n=6000), weighted_scores(n=20000, seed=1)
    site = split(6000, 4)
    platt, temperature = federate(*fitted, site), federate(*fitted, site, bias=False)
    scores, labels = held
    scaled = calibrated(scores, *map(np.array, platt.of(FINDINGS)))
    cooled = calibrated(scores, *map(np.array, temperature.of(FINDINGS)))
    for j in range(len(FINDINGS)):
        assert ece(scores[:, j], labels[:, j]) > 0.1
        assert ece(cooled[:, j], labels[:, j]) > 0.1
        assert ece(scaled[:, j], labels[:, j]) < 0.02
        assert roc_auc_score(labels[:, j], scaled[:, j]) == roc_auc_score(labels[:, j], scores[:, j])


@pytest.mark.parametrize(
    ("sharpness", "shift", "prevalence", "apart", "n"),
    [
        (15.0, 0.0, 0.2, 1.5, 300),  # scores that float32 rounds to 0 and 1
        (2.0, -4.0, 0.01, 2.0, 5000),  # one study in a hundred
        (0.05, -3.0, 0.3, 1.5, 500),  # scores that hardly differ
        (3.0, 0.0, 0.3, 20.0, 60),  # separable
        (1.0, 0.0, 0.5, 1.0, 24),  # few
    ],
)
def test_the_maximum_is_found_from_far_away(sharpness, shift, prevalence, apart, n):
    generator = np.random.default_rng(5)
    y = (generator.random((n, 1)) < prevalence).astype(np.float32)
    scores = expit(sharpness * (generator.normal(size=(n, 1)) + apart * (y - 0.5)) + shift)
    scores = scores.astype(np.float32)
    result = federate(scores, y, split(n, 3))
    assert result.left == {}
    assert result.exchanges <= 8
    found = (result.slope["effusion"], result.bias["effusion"])
    assert found == pytest.approx(tuple(pooled(scores[:, 0], y[:, 0])), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("lost", [False, True])
def test_a_step_that_makes_it_worse_is_shortened(lost):
    # A long tail of high scores: the fourth point overshoots the third. A site that is lost just
    # then takes its share of the loss with it, which must not pass for an improvement.
    generator = np.random.default_rng(2)
    y = (generator.random((600, 1)) < 0.05).astype(np.float32)
    scores = expit(np.exp(generator.normal(size=(600, 1)) + y) - 2).astype(np.float32)
    sites = {"s0": (scores, y), "s1": (scores[::40], y[::40])}
    tried = []
    calibration = Calibration(["effusion"])
    while not calibration.done:
        asked = calibration.ask()
        tried.append(np.array(asked["effusion"]))
        if lost and len(tried) == 4:
            del sites["s1"]
        calibration.take({name: platt_metrics(*held, ["effusion"], asked, 1) for name, held in sites.items()})
    far, near = tried[4:6] if lost else tried[3:5]
    np.testing.assert_allclose(near, (tried[2] + far) / 2)
    assert far[0] > near[0] > calibration.result.slope["effusion"]
    rest = [np.concatenate(parts)[:, 0] for parts in zip(*sites.values(), strict=True)]
    found = (calibration.result.slope["effusion"], calibration.result.bias["effusion"])
    assert found == pytest.approx(tuple(pooled(*rest)), abs=1e-6)


def left(scores, labels, min_cell=1, sites=2, **options):
    one = np.asarray(scores, dtype=np.float32)[:, None], np.asarray(labels, dtype=np.float32)[:, None]
    result = federate(*one, split(len(one[0]), sites), min_cell=min_cell, **options)
    assert (result.slope, result.bias) == ({"effusion": 1.0}, {"effusion": 0.0})
    return result.left["effusion"]


def test_what_cannot_be_calibrated_is_left_and_said():
    scores, labels = (column[:, 0] for column in weighted_scores(n=200))
    assert "no site" in left(scores, np.full(200, np.nan))
    assert "no site" in left(scores, labels, min_cell=80)
    assert "with the finding" in left(scores, np.zeros(200))
    assert "without the finding" in left(scores, np.ones(200))
    assert "do not rise" in left(1 - scores, labels)
    assert "alike" in left(np.full(200, 1 / 3), labels)
    assert str(MOST_EXCHANGES) in left(np.linspace(0.1, 0.9, 200), np.arange(200) > 99, smooth=False)


def test_a_site_below_the_cell_is_not_in_the_fit():
    scores, labels = weighted_scores(n=900, prevalence=(0.3,))
    site = split(900, 3)
    small = (site == 1) & (labels[:, 0] == 1)
    labels[np.flatnonzero(small)[10:], 0] = 0.0
    result = federate(scores, labels, site, min_cell=11)
    assert result.sites == {"effusion": ("site-0", "site-2")}
    rest = site != 1
    expected = pooled(scores[rest, 0], labels[rest, 0])
    assert (result.slope["effusion"], result.bias["effusion"]) == pytest.approx(tuple(expected), abs=1e-6)


@pytest.mark.parametrize("lost_at", [1, 2, 3])
@pytest.mark.parametrize("how", ["silent", "wrong", "other studies"])
def test_a_site_that_is_lost_is_lost_to_the_objective_too(lost_at, how):
    scores, labels = weighted_scores(n=900, prevalence=(0.3, 0.1))
    site = split(900, 3)
    names = FINDINGS[:2]
    calibration = Calibration(names)
    exchange = 0
    while not calibration.done:
        exchange += 1
        asked, answers = calibration.ask(), {}
        for k in range(3):
            rows = site == k
            if k == 2 and exchange > lost_at and how == "other studies":
                rows = rows & (np.arange(900) > 450)
            answers[f"s{k}"] = platt_metrics(scores[rows], labels[rows], names, asked, 1)
        if exchange > lost_at and how == "silent":
            del answers["s2"]
        wrong = exchange > lost_at and how == "wrong"
        if wrong:
            answers["s2"][f"{next(iter(asked))}.platt"] = [float("nan")] * 8
        assert [*calibration.take(answers)] == (["s2"] if wrong else [])
    result = calibration.result
    for j, finding in enumerate(names):
        assert result.sites[finding] == ("s0", "s1")
        expected = pooled(scores[site != 2, j], labels[site != 2, j])
        assert (result.slope[finding], result.bias[finding]) == pytest.approx(tuple(expected), abs=1e-6)


def test_when_every_site_is_lost_the_finding_is_left():
    calibration = Calibration(["effusion"])
    calibration.take(
        {"s0": platt_metrics(*weighted_scores(prevalence=(0.3,)), ["effusion"], calibration.ask(), 1)}
    )
    calibration.take({})
    assert calibration.done
    assert calibration.result.left == {"effusion": "the sites did not answer"}


def test_a_settled_finding_is_not_asked_for_again():
    scores, labels = weighted_scores(n=400)
    labels[:, 0] = np.nan
    calibration = Calibration(FINDINGS)
    assert [*calibration.ask()] == [*FINDINGS]
    calibration.take({"s0": platt_metrics(scores, labels, FINDINGS, calibration.ask(), 1)})
    assert [*calibration.ask()] == ["nodule", "mass"]
    assert calibration.result.left["nodule"] == "not settled"
