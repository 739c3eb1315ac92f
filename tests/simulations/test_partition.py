"""Laws of dealing one table out to many sites."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from simulations.partition import SCHEMES, partition


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    count = draw(st.integers(1, 40))
    patients = np.array(draw(st.lists(st.integers(0, 25), min_size=count, max_size=count))).astype(str)
    seed = draw(st.integers(0, 100))
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, np.nan], size=(count, draw(st.integers(0, 4)))).astype(np.float32)
    column = random.integers(0, 5, count).astype(str)
    return patients, labels, column, seed


ALPHAS = st.sampled_from([1e-6, 0.1, 1.0, 1e6])


@given(tables(), st.sampled_from(SCHEMES), st.integers(1, 6), ALPHAS)
@settings(max_examples=150, deadline=None)
def test_every_study_once_every_patient_at_one_site_no_site_empty(
    table, scheme, sites: int, alpha: float
) -> None:
    patients, labels, column, seed = table

    def deal() -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        return partition(
            patients, labels, scheme=scheme, sites=sites, generator=generator, alpha=alpha, column=column
        )

    try:
        rows = deal()
    except ConfigError:
        assert sites > (len(set(patients)) if scheme != "column" else 1)
        return
    assert len(rows) == sites
    assert all(len(site) and site.dtype == np.int64 for site in rows)
    assert sorted(np.concatenate(rows)) == list(range(len(patients)))
    assert sum(len(set(patients[site])) for site in rows) == len(set(patients))
    for first, again in zip(rows, deal(), strict=True):
        np.testing.assert_array_equal(first, again)


@given(tables(), st.sampled_from(SCHEMES), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_rows_does_not_matter(table, scheme, random) -> None:
    patients, labels, column, seed = table
    order = list(range(len(patients)))
    random.shuffle(order)

    def homes(which: list[int]) -> dict[str, int]:
        generator = np.random.default_rng(seed)
        sites = 1 if scheme == "column" else min(3, len(set(patients)))
        rows = partition(
            patients[which],
            labels[which],
            scheme=scheme,
            sites=sites,
            generator=generator,
            column=column[which],
        )
        return {patients[which][i]: site for site, members in enumerate(rows) for i in members}

    assert homes(order) == homes(list(range(len(patients))))


def crowd(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return np.array([f"p{i}" for i in range(count)]), (random.random((count, 2)) < 0.5).astype(np.float32)


def prevalences(alpha: float) -> np.ndarray:
    patients, labels = crowd()
    rows = partition(
        patients, labels, scheme="dirichlet", sites=4, generator=np.random.default_rng(1), alpha=alpha
    )
    assert [len(site) for site in rows] == [100] * 4
    return np.array([labels[site, 0].mean() for site in rows])


def test_alpha_sets_how_unlike_the_sites_are() -> None:
    assert np.ptp(prevalences(0.05)) > 0.4
    assert np.ptp(prevalences(1e4)) < 0.2


def test_quantity_skews_sizes_only() -> None:
    patients, labels = crowd()
    sizes = [
        sorted(
            len(s)
            for s in partition(
                patients, labels, scheme="quantity", sites=4, generator=np.random.default_rng(2), alpha=a
            )
        )
        for a in (0.1, 1e5)
    ]
    assert sizes[0][-1] > 250
    assert sizes[1][-1] - sizes[1][0] <= 6


def test_a_patient_of_two_scanners_goes_to_the_commoner() -> None:
    patients = np.array(["a", "a", "a", "b", "c"])
    rows = partition(
        patients, np.zeros((5, 1), np.float32), scheme="column", sites=2,
        generator=np.random.default_rng(0), column=["x", "y", "y", "x", "y"],
    )  # fmt: skip
    assert [site.tolist() for site in rows] == [[3], [0, 1, 2, 4]]


def test_more_values_than_sites_are_packed() -> None:
    patients = np.array(list("abcdef"))
    rows = partition(
        patients, np.zeros((6, 0), np.float32), scheme="column", sites=2,
        generator=np.random.default_rng(0), column=["x", "x", "x", "y", "y", "z"],
    )  # fmt: skip
    assert [site.tolist() for site in rows] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scheme": "dirichlt"}, "did you mean 'dirichlet'"),
        ({"sites": 0}, "cannot be dealt to 0 sites"),
        ({"sites": 4}, "3 patients cannot be dealt to 4 sites"),
        ({"scheme": "dirichlet", "alpha": 0.0}, "alpha must be above 0"),
        ({"scheme": "quantity", "alpha": float("nan")}, "alpha must be above 0"),
        ({"scheme": "column"}, r"needs partition\.column"),
        ({"scheme": "column", "column": ["x"] * 3}, "1 values with patients, for 2 sites"),
    ],
)
def test_what_cannot_be_dealt(change: dict, expected: str) -> None:
    settings = {"scheme": "iid", "sites": 2, "generator": np.random.default_rng(0), **change}
    with pytest.raises(ConfigError, match=expected):
        partition(["a", "b", "c"], np.zeros((3, 1), np.float32), **settings)
