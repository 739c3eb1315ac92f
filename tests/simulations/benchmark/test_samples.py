"""Metrics of drawn patients against scikit-learn and against the metrics of the report."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from common.metrics.calibration import ece, pooled_ece
from simulations.benchmark.samples import Draws, sample
from simulations.benchmark.scores import Scores

Array = NDArray[np.float64]


def scores(n: int = 60, findings: int = 3, seed: int = 0) -> Scores:
    """Studies of 30 patients, with ties and missing labels."""
    generator = np.random.default_rng(seed)
    probabilities = generator.random((n, findings)).round(1).astype(np.float32)
    labels = (generator.random((n, findings)) < 0.4).astype(np.float32)
    labels[generator.random((n, findings)) < 0.1] = np.nan
    return Scores(probabilities, labels, np.repeat(np.arange(n // 2), 2))


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        ("auroc", lambda y, p, w: roc_auc_score(y, p, sample_weight=w)),
        ("pr_auc", lambda y, p, w: average_precision_score(y, p, sample_weight=w)),
        ("brier", lambda y, p, w: brier_score_loss(y, p, sample_weight=w)),
        ("ece", lambda y, p, w: ece(np.repeat(p, w), np.repeat(y, w))),
    ],
)
def test_each_draw_is_what_others_compute(
    metric: str, theirs: Callable[[Array, Array, Array], float]
) -> None:
    told = scores()
    weights = Draws(20).of("north", told)
    ours = sample(metric, told, weights)
    assert ours is not None and ours.shape == (21,)
    for row in (0, 7, 20):
        expected = []
        for j in range(3):
            known = ~np.isnan(told.labels[:, j])
            drawn = weights[row, known].astype(int)
            expected.append(theirs(told.labels[known, j], told.probabilities[known, j], drawn))
        assert ours[row] == pytest.approx(np.mean(expected), abs=1e-6)


def test_pooled_ece_is_over_all_decisions() -> None:
    told = scores()
    ours = sample("pooled_ece", told, np.ones((1, 60)))
    assert ours is not None
    assert ours[0] == pytest.approx(pooled_ece(told.probabilities, told.labels), abs=1e-12)


def test_a_draw_without_a_class_leaves_the_finding_out() -> None:
    told = Scores(
        np.array([[0.9, 0.2], [0.1, 0.6], [0.4, 0.8]], dtype=np.float32),
        np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32),
        np.arange(3),
    )
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0]])
    ours = sample("auroc", told, weights)
    assert ours is not None
    assert np.isnan(ours[1])  # without the first study neither finding has both classes
    assert ours[[0, 2]].tolist() == [1.0, 1.0]


def test_what_needs_a_threshold_is_not_drawn() -> None:
    assert sample("mcc", scores(), np.ones((1, 60))) is None


def test_draws_are_of_patients_and_the_same_for_the_same_studies() -> None:
    draws, told = Draws(40), scores()
    weights = draws.of("north", told)
    assert (weights[:, ::2] == weights[:, 1::2]).all()
    assert (weights[1:].sum(axis=1) == 60).all() and weights[1:].std() > 0
    other_model = Scores(1 - told.probabilities, told.labels, told.patients)
    assert np.array_equal(Draws(40).of("north", other_model), weights)
    assert not np.array_equal(draws.of("south", told), weights)
