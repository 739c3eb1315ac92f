"""Draws of training studies: nested, repeatable, exact, by patient."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.draw import draw_fraction, draw_shots

SHOTS = (2, 4, 8, 16, 32)


def many(count: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    patients = np.array([f"p{i}" for i in rng.integers(0, count // 2, count)])
    paths = np.array([f"{i}.png" for i in range(count)])
    labels = rng.choice([0, 1, np.nan], (count, 3), p=[0.6, 0.3, 0.1]).astype(np.float32)
    rows = np.flatnonzero(np.isin(patients, np.unique(patients)[::2]))
    return patients, paths, rows, labels


@pytest.mark.parametrize("shots", SHOTS)
def test_class_counts_are_exact_and_patients_differ(shots: int) -> None:
    patients, paths, rows, labels = many()
    shown = draw_shots(patients, paths, rows, labels, shots, seed=3)
    for j in range(labels.shape[1]):
        present, absent = (rows[shown[rows, j] == value] for value in (1, 0))
        assert len(present) == len(absent) == shots
        assert len(set(patients[np.concatenate([present, absent])])) == 2 * shots
    elsewhere = np.setdiff1d(np.arange(len(labels)), rows)
    np.testing.assert_array_equal(shown[elsewhere], labels[elsewhere])
    seen = ~np.isnan(shown)
    np.testing.assert_array_equal(shown[seen], labels[seen])


def test_shots_are_nested() -> None:
    patients, paths, rows, labels = many()
    shown = [~np.isnan(draw_shots(patients, paths, rows, labels, k, 0)[rows]) for k in SHOTS]
    for fewer, more in pairwise(shown):
        assert (more >= fewer).all()
        assert (more > fewer).any()


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=15, deadline=None)
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    patients, paths, rows, labels = many(200)
    shown = draw_shots(patients, paths, rows, labels, 4, seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    np.testing.assert_array_equal(draw_shots(patients, paths, rows[order], labels, 4, seed), shown)
    fraction = draw_fraction(patients, rows, 0.1, seed)
    assert set(draw_fraction(patients, rows[order], 0.1, seed)) == set(fraction)


def test_another_seed_draws_others() -> None:
    patients, paths, rows, labels = many()
    first, again, other = (draw_shots(patients, paths, rows, labels, 8, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(np.isnan(first), np.isnan(other))


def test_one_ten_and_a_hundred_percent() -> None:
    patients, _, rows, _ = many()
    drawn = [draw_fraction(patients, rows, share, 0) for share in (0.01, 0.1, 1.0)]
    everyone = len(set(patients[rows]))
    assert [len(set(patients[part])) for part in drawn] == [round(everyone * s) for s in (0.01, 0.1, 1.0)]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2]) == set(rows)
    for part in drawn:  # a patient comes whole
        assert not set(patients[part]) & set(patients[np.setdiff1d(rows, part)])
