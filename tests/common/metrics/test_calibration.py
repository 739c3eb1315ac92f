"""Brier and ECE against scikit-learn, and the difference between the two ECE definitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from common.errors import DataError
from common.metrics.calibration import BINS, brier, ece, pooled_ece


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
