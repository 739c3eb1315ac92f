"""The bootstrap draws patients, whole, with replacement."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ConfigError
from common.metrics import bootstrap
from common.metrics.bootstrap import percentile_interval, resamples, standard_error


def test_a_patients_studies_stay_together_and_every_replicate_is_full():
    patients = ["a", "b", "a", "c", "b", "a"]
    weights = np.concatenate(list(resamples(patients, 500, np.random.default_rng(0))))
    assert weights.shape == (500, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), np.full(500, 3.0))
    assert weights.mean() == pytest.approx(1.0, abs=0.1)


def test_1_and_the_string_1_are_two_patients():
    assert bootstrap.patient_codes([1, "1", 1]).tolist() == [0, 1, 0]


def test_blocks_do_not_change_the_draw(monkeypatch):
    patients = list(range(7))
    whole = np.concatenate(list(resamples(patients, 9, np.random.default_rng(3))))
    monkeypatch.setattr(bootstrap, "BLOCK", 14)
    blocks = list(resamples(patients, 9, np.random.default_rng(3)))
    assert [len(block) for block in blocks] == [2, 2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_the_standard_error_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(1).normal(size=400)
    weights = np.concatenate(list(resamples(range(400), 4000, np.random.default_rng(2))))
    means = weights @ values / 400
    assert standard_error(means) == pytest.approx(values.std() / 20, rel=0.05)
    low, high = percentile_interval(means)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.07)


def test_too_few_replicates_give_no_interval():
    assert percentile_interval(np.array([0.4, np.nan])) is None
    assert standard_error(np.array([0.4, np.nan])) is None
    with pytest.raises(ConfigError, match="negative"):
        list(resamples(["a"], -1, np.random.default_rng(0)))
