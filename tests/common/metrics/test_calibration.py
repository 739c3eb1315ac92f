"""Brier and ECE against scikit-learn, and the difference between the two ECE definitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from common.errors import DataError
from common.metrics.calibration import BINS, brier, ece, pooled_ece, reliability_bins


@st.composite
def predicted(draw):
    """Probabilities, bin edges and the ends among them, with labels of both classes."""
    n = draw(st.integers(2, 60))
    edges = st.integers(0, BINS).map(lambda i: float(np.linspace(0, 1, BINS + 1)[i]))
    p = draw(arrays(np.float64, n, elements=st.one_of(st.floats(0, 1), edges)))
    y = draw(arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0])))
    y[:2] = [0.0, 1.0]
    return p, y


@given(predicted())
def test_brier_is_scikit_learns(case):
    p, y = case
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p), abs=1e-12)


@given(predicted())
def test_ece_is_the_gap_of_scikit_learns_reliability_curve(case):
    p, y = case
    present, said = calibration_curve(y, p, n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    held = np.array(
        [((p > low) | ((p == 0) & (low == 0))) & (p <= high) for low, high in pairwise(edges)]
    ).sum(axis=1)
    share = held[held > 0] / p.size
    assert ece(p, y) == pytest.approx(float(np.sum(share * np.abs(present - said))), abs=1e-9)


@settings(deadline=None)
@given(predicted())
def test_plain_bins_are_the_points_of_scikit_learns_curve(case):
    p, y = case
    present, said = calibration_curve(y, p, n_bins=BINS)
    bins = reliability_bins(p, y)
    assert [b.positives / b.studies for b in bins] == pytest.approx(present.tolist())
    assert [b.mean for b in bins] == pytest.approx(said.tolist())
    ours = sum(b.studies * abs(b.positives / b.studies - b.mean) for b in bins) / p.size
    assert ece(p, y) == pytest.approx(ours, abs=1e-9)


@settings(deadline=None)
@given(predicted(), st.integers(2, 15))
def test_no_bin_has_a_small_cell_and_none_of_the_studies_is_lost(case, min_cell):
    p, y = case
    bins = reliability_bins(p, y, min_cell)
    assert (bins == ()) == (min((y == 1).sum(), (y == 0).sum()) < min_cell)
    assert all(min(b.positives, b.studies - b.positives) >= min_cell for b in bins)
    if bins:
        assert sum(b.studies for b in bins) == y.size and sum(b.positives for b in bins) == y.sum()
        assert sum(b.studies * b.mean for b in bins) == pytest.approx(p.sum())
        assert [b.mean for b in bins] == sorted(b.mean for b in bins)
        assert len(bins) <= len(reliability_bins(p, y, fine=True))


def test_another_scale_of_one_ranking_leaves_the_bins_as_they_are():
    """Else two diagrams of the same studies would tell of those between two cuts."""
    generator = np.random.default_rng(0)
    p, y = generator.random(300), generator.integers(0, 2, 300)
    q = p**3 / (p**3 + (1 - p))
    before, after = reliability_bins(p, y, 11), reliability_bins(q, y, 11, by=p)
    assert len(before) > 5
    assert [(b.studies, b.positives) for b in before] == [(b.studies, b.positives) for b in after]
    assert [b.mean for b in after] == sorted(b.mean for b in after) != [b.mean for b in before]
    assert [b.studies for b in reliability_bins(q, y, 11)] != [b.studies for b in after]


def test_neighbours_are_joined_from_the_lowest_up_and_what_is_left_joins_the_last():
    p = np.repeat([0.05, 0.3, 0.6, 0.95], [8, 4, 6, 3])
    y = np.concatenate([[1] * 1 + [0] * 7, [1] * 2 + [0] * 2, [1] * 3 + [0] * 3, [1] * 3])
    told = [(b.studies, b.positives, round(b.mean, 6)) for b in reliability_bins(p, y, 3)]
    low, high = (8 * 0.05 + 4 * 0.3) / 12, (6 * 0.6 + 3 * 0.95) / 9
    assert told == [(12, 3, round(low, 6)), (9, 6, round(high, 6))]
    assert reliability_bins(p, np.where(y == 1, np.nan, y), 3) == ()


def test_opposite_errors_cancel_only_when_pooled():
    p = np.full((100, 2), 0.5)
    y = np.stack([np.ones(100), np.zeros(100)], axis=1)
    assert pooled_ece(p, y) == 0.0
    assert ece(p[:, 0], y[:, 0]) == ece(p[:, 1], y[:, 1]) == 0.5


def test_what_is_not_annotated_is_left_out():
    p, y = np.array([0.3, 0.9, 0.6]), np.array([0.0, np.nan, 1.0])
    assert brier(p, y) == brier(p[[0, 2]], y[[0, 2]])
    assert ece(p, y) == ece(p[[0, 2]], y[[0, 2]])
    assert brier(p, np.full(3, np.nan)) is None
    assert pooled_ece(p[None], np.full((1, 3), np.nan)) is None


def test_logits_are_refused():
    with pytest.raises(DataError, match="outside 0 to 1"):
        ece(np.array([-2.0, 3.0]), np.array([0, 1]))
