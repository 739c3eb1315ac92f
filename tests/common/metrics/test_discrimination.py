"""AUROC, average precision and MCC against scikit-learn, ties and weights included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from common.errors import DataError, LabelError
from common.metrics.discrimination import (
    auroc,
    average_precision,
    best_threshold,
    mcc,
    rank,
    weighted_auroc,
)


@st.composite
def scored(draw):
    """Scores on a coarse grid (so that many tie) with labels of both classes."""
    n = draw(st.integers(2, 40))
    scores = draw(arrays(np.float64, n, elements=st.integers(0, 6).map(lambda i: i / 6)))
    labels = draw(arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0])))
    labels[:2] = [0.0, 1.0]
    return scores, labels


@given(scored())
def test_auroc_is_scikit_learns(case):
    scores, labels = case
    assert auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)


@given(scored(), st.data())
def test_weighted_auroc_is_scikit_learns_on_every_row(case, data):
    scores, labels = case
    counts = st.integers(0, 3).map(float)
    weights = data.draw(arrays(np.float64, (3, scores.size), elements=counts))
    weights[:, :2] += 1.0
    ours = weighted_auroc(rank(scores, labels), weights)
    theirs = [sk.roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@given(scored(), st.data())
def test_multiplicity_is_repetition(case, data):
    scores, labels = case
    times = data.draw(arrays(np.int64, scores.size, elements=st.integers(1, 3)))
    repeated = auroc(np.repeat(scores, times), np.repeat(labels, times))
    assert auroc(scores, labels, times) == pytest.approx(repeated, abs=1e-12)


@given(scored())
def test_average_precision_is_scikit_learns(case):
    scores, labels = case
    theirs = sk.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(theirs, abs=1e-12)


@given(scored())
def test_mcc_is_scikit_learns(case):
    scores, labels = case
    called = scores >= 0.5
    assert mcc(called, labels) == pytest.approx(sk.matthews_corrcoef(labels, called), abs=1e-12)


@given(scored())
def test_the_threshold_is_the_best_of_all_thresholds(case):
    scores, labels = case
    threshold = best_threshold(scores, labels)
    best = max(sk.matthews_corrcoef(labels, scores >= cut) for cut in np.unique(scores))
    assert mcc(scores >= threshold, labels) == pytest.approx(max(best, 0.0), abs=1e-12)


def test_a_threshold_between_neighbouring_floats_still_splits_them():
    low, high = 0.5, np.nextafter(0.5, 1.0)
    threshold = best_threshold(np.array([low, high]), np.array([0, 1]))
    assert low < threshold <= high


@given(scored(), st.data())
@settings(max_examples=50)
def test_what_is_not_annotated_changes_nothing(case, data):
    scores, labels = case
    extra = data.draw(st.integers(1, 5))
    more = np.concatenate([scores, np.full(extra, np.nan)])
    unknown = np.concatenate([labels, np.full(extra, np.nan)])
    for metric in (auroc, average_precision, best_threshold):
        assert metric(more, unknown) == metric(scores, labels)


@given(scored())
def test_turning_the_scores_round_mirrors_the_auroc(case):
    scores, labels = case
    assert auroc(scores, labels) + auroc(-scores, labels) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [np.nan, np.nan], [1, np.nan]])
def test_a_single_class_is_undefined(labels):
    scores, truth = np.array([0.2, 0.8]), np.array(labels)
    for metric in (auroc, average_precision, best_threshold, mcc):
        assert metric(scores, truth) is None


def test_a_replicate_without_positives_is_nan():
    ranking = rank(np.array([0.1, 0.9]), np.array([0, 1]))
    areas = weighted_auroc(ranking, np.array([[1.0, 0.0], [1.0, 2.0]]))
    assert np.isnan(areas[0]) and areas[1] == 1.0


def test_bad_input_is_refused():
    with pytest.raises(LabelError, match="1, 0 or NaN"):
        auroc(np.array([0.1, 0.2]), np.array([0, -1]))
    with pytest.raises(DataError, match="NaN or infinite"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]))
    with pytest.raises(DataError, match="one length"):
        auroc(np.array([0.1, 0.2]), np.array([0, 1, 1]))
