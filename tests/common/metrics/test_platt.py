"""Platt sums: derivatives against differences, sums over sites, what a site could not have sent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.special import expit
from scipy.special import logit as scipy_logit
from sklearn.metrics import log_loss, roc_auc_score

from common.errors import DataError, LabelError, SchemaError
from common.metrics.platt import (
    DECIMALS,
    MOST_LOGIT,
    SUMS,
    PlattSums,
    calibrated,
    logits,
    objective,
    site_sums,
    targets,
    total,
)


def studies(n=400, seed=0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.2).astype(float)
    return generator.normal(size=n) + 2 * labels, labels


def at(point, z, y, smooth=True):
    return objective(site_sums(z, y, *point), *point, smooth)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("point", [(0.0, 0.0), (1.0, -2.0), (-0.5, 3.0)])
def test_gradient_and_hessian_are_the_differences_of_the_loss(point, smooth):
    z, y = studies()
    here = at(point, z, y, smooth)
    slopes = approx_fprime(np.array(point), lambda x: at(x, z, y, smooth).loss, 1e-7)
    np.testing.assert_allclose(here.gradient, slopes, rtol=1e-4, atol=1e-3)
    for k in range(2):
        column = approx_fprime(np.array(point), lambda x, k=k: at(x, z, y, smooth).gradient[k], 1e-7)
        np.testing.assert_allclose(here.hessian[k], column, rtol=1e-4, atol=1e-3)


def test_without_smoothing_the_loss_is_scikit_learns_log_loss():
    z, y = studies()
    theirs = log_loss(y, expit(0.7 * z - 1), normalize=False)
    assert at((0.7, -1.0), z, y, smooth=False).loss == pytest.approx(theirs, rel=1e-12)


def test_the_loss_is_finite_where_a_sigmoid_would_round_to_one():
    z, y = np.array([-103.0, 17.0, 50.0]), np.array([1.0, 0.0, 1.0])
    here = at((9.0, 0.0), z, y, smooth=False)
    assert here.loss == pytest.approx(9 * 103 + 9 * 17)
    assert np.isfinite(here.hessian).all()


def test_a_study_that_is_not_annotated_is_not_there():
    z, y = studies(50)
    holes = np.append(y, np.nan)
    assert site_sums(np.append(z, 9.0), holes, 1.0, 0.5) == site_sums(z, y, 1.0, 0.5)
    with pytest.raises(LabelError):
        site_sums(z, y + 0.5, 1.0, 0.0)


@given(st.lists(st.integers(0, 3), min_size=60, max_size=60), st.permutations(range(4)))
def test_sites_add_up_to_their_pooled_studies_in_any_order(where, order):
    z, y = studies(60)
    site = np.array(where)
    parts = [site_sums(z[site == k], y[site == k], 0.8, -1.0) for k in range(4)]
    assert total(parts) == total(parts[k] for k in order)
    pooled = dataclasses.astuple(site_sums(z, y, 0.8, -1.0))
    assert dataclasses.astuple(total(parts)) == pytest.approx(pooled, abs=1e-10)


def test_no_site_adds_up_to_nothing():
    assert total([]) == PlattSums(0, 0, *[0.0] * len(SUMS))


def test_targets_lie_inside_0_and_1_and_go_to_them_with_many_studies():
    assert targets(0, 0) == (0.5, 0.5)
    assert targets(10**9, 10**9) == pytest.approx((1.0, 0.0), abs=1e-8)
    assert targets(3, 4, smooth=False) == (1.0, 0.0)


def test_logits_are_scipys_and_keep_every_float32_apart():
    p = np.linspace(0.001, 0.999, 500)
    np.testing.assert_allclose(logits(p), scipy_logit(p), rtol=1e-12, atol=1e-15)
    below, above = np.float32(0), np.float32(1)
    ends = np.array(
        [below, np.nextafter(below, above), 1e-40, 0.5, np.nextafter(above, below), above], dtype=np.float32
    )
    assert (np.diff(logits(ends)) > 0).all()
    assert np.abs(logits(ends)).max() < MOST_LOGIT
    for wrong in (-0.1, 1.1, np.nan):
        with pytest.raises(DataError):
            logits(np.array([wrong]))


def test_a_positive_slope_leaves_every_ranking_as_it_was():
    generator = np.random.default_rng(3)
    p = expit(generator.normal(0, 3, (3000, 2))).astype(np.float32)
    y = generator.random((3000, 2)) < p
    scaled = calibrated(p, np.array([0.2, 2.5]), np.array([-4.0, 3.0]))
    for j in range(2):
        np.testing.assert_array_equal(
            np.unique(p[:, j], return_inverse=True)[1], np.unique(scaled[:, j], return_inverse=True)[1]
        )
        assert roc_auc_score(y[:, j], scaled[:, j]) == roc_auc_score(y[:, j], p[:, j])


def test_what_is_not_calibrated_comes_back_to_the_bit():
    p = np.random.default_rng(0).random((40, 2)).astype(np.float32)
    scaled = calibrated(p, np.array([1.0, 1.5]), np.array([0.0, 0.0]))
    np.testing.assert_array_equal(scaled[:, 0], p[:, 0])
    np.testing.assert_allclose(scaled[:, 1], expit(1.5 * scipy_logit(p[:, 1].astype(float))), rtol=1e-9)


@given(st.floats(-9, 9), st.floats(-9, 9), st.integers(1, 200), st.integers(0, 99))
def test_what_a_site_can_sum_to_is_taken_as_sent(slope, bias, n, seed):
    generator = np.random.default_rng(seed)
    z = generator.normal(0, 6, n).clip(-MOST_LOGIT, 17)
    sums = site_sums(z, (generator.random(n) < 0.4).astype(float), slope, bias)
    sent = sums.to_list()
    read = PlattSums.from_list(sums.positives, sums.negatives, sent)
    assert read.to_list() == sent
    assert sent == [round(v, DECIMALS) for v in sent]


GOOD = site_sums(*studies(100), 0.5, 0.1)


@pytest.mark.parametrize(
    ("positives", "negatives", "change"),
    [
        (None, 80, {}),
        (20.0, 80, {}),
        (True, 80, {}),
        (-1, 101, {}),
        (0, 0, {}),
        (20, 80, {"p": 101.0}),
        (20, 80, {"p": -1.0}),
        (20, 80, {"pz": 2e4}),
        (20, 80, {"w": 26.0}),
        (20, 80, {"wzz": 1e6}),
        (20, 80, {"wz": -1e5}),
        (20, 80, {"softplus": -1.0}),
        (20, 80, {"z_positive": 3e3}),
        (20, 80, {"z_negative": float("nan")}),
        (20, 80, {"z_negative": float("inf")}),
        (20, 80, {"z_negative": 3}),
    ],
)
def test_sums_that_no_studies_could_give_are_refused(positives, negatives, change):
    values = dict(zip(SUMS, GOOD.to_list(), strict=True)) | change
    with pytest.raises(SchemaError):
        PlattSums.from_list(positives, negatives, list(values.values()))


def test_sums_of_another_length_are_refused():
    for sums in (GOOD.to_list()[:-1], [*GOOD.to_list(), 1.0], 3.0, None):
        with pytest.raises(SchemaError):
            PlattSums.from_list(20, 80, sums)
