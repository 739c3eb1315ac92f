"""Means that a few sites cannot pull away, against numpy's and SciPy's of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from common.adapter import AdapterSchema, AdapterState
from common.config import RunConfig
from common.errors import ConfigError, SchemaError
from server.spool import Spool
from server.strategies import robust
from server.strategies.robust import median, trimmed, trimmed_mean
from server.strategies.strategy import MEANS, check_strategy
from server.update import SiteUpdate, named
from tests.server.folding import fold

FINDINGS = 3
SCHEMA = AdapterSchema(
    (("body", (4, 5)), ("head.weight", (FINDINGS, 6)), ("late", (7,)), ("head.bias", (FINDINGS,))),
    ("head.weight", "head.bias"),
)
HEAD = {name: SCHEMA.names.index(name) for name in SCHEMA.head}


def sent(owned: list[list[int]], seed: int) -> list[SiteUpdate]:
    """Updates of sites that annotate so many studies of each finding."""
    generator = torch.Generator().manual_seed(seed)
    return [
        SiteUpdate(
            f"s{k:02d}", 10**k, np.array(counts),
            {name: torch.randn(shape, generator=generator) for name, shape in SCHEMA.shapes},
        )
        for k, counts in enumerate(owned)
    ]  # fmt: skip


def stacked(updates: list[SiteUpdate], name: str) -> np.ndarray:
    return np.stack([update.delta[name].double().numpy() for update in updates])


counts_of_sites = st.lists(
    st.lists(st.integers(0, 1), min_size=FINDINGS, max_size=FINDINGS), min_size=1, max_size=9
)


@settings(deadline=None, max_examples=40)
@given(counts_of_sites, st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.49]))
def test_values_are_numpys_over_the_sites_that_annotate_a_row(owned, seed, share):
    updates = sent(owned, seed)
    held = Spool.of(updates, SCHEMA)
    for found, expected in (
        (median(held), lambda values: np.median(values, axis=0)),
        (trimmed_mean(held, share), lambda values: trim_mean(values, share)),
    ):
        assert found.dtype == torch.float64
        tensors = named(found, SCHEMA)
        for name in ("body", "late"):
            np.testing.assert_allclose(
                tensors[name], expected(stacked(updates, name)), rtol=1e-12, atol=1e-15
            )
        for name in SCHEMA.head:
            for row in range(FINDINGS):
                those = [update for update in updates if update.labelled[row]]
                if not those:
                    assert not tensors[name][row].any()
                    continue
                value = expected(stacked(those, name)[:, row])
                np.testing.assert_allclose(tensors[name][row], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", sorted(MEANS))
def test_parts_of_any_size_give_the_same_bits(name, monkeypatch):
    updates = sent([[1, 2, 0], [0, 3, 1], [4, 4, 4], [1, 0, 0], [2, 2, 2]], 3)
    strategy = RunConfig.from_flat({"strategy.trim": 0.25}).strategy
    whole = MEANS[name](Spool.of(updates, SCHEMA), strategy)
    monkeypatch.setattr(robust, "_SPACE", 16)
    monkeypatch.setattr("server.strategies.mean.BLOCK", 4)
    monkeypatch.setattr(robust, "BLOCK", 4)
    assert torch.equal(MEANS[name](Spool.of(updates[::-1], SCHEMA), strategy), whole)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 12), st.data())
def test_a_minority_cannot_pull_it_beyond_the_others(sites, data):
    """Yin et al. 2018: with fewer liars than are left out, each value stays among the honest ones'."""
    liars = data.draw(st.integers(1, (sites - 1) // 2))
    size = data.draw(st.sampled_from([1e-3, 1.0, 1e4, 3e38]))
    updates = sent([[1, 1, 1]] * sites, sites)
    honest = updates[liars:]
    loud = [
        SiteUpdate(u.site, 10**6, u.labelled, {n: torch.full_like(t, size) for n, t in u.delta.items()})
        for u in updates[:liars]
    ]
    held = Spool.of([*loud, *honest], SCHEMA)
    for found in (median(held), trimmed_mean(held, liars / sites)):
        assert torch.isfinite(found).all()
        for name, tensor in named(found, SCHEMA).items():
            values = stacked(honest, name)
            assert (tensor.numpy() <= values.max(axis=0)).all() and (
                tensor.numpy() >= values.min(axis=0)
            ).all()


def test_of_sites_that_agree_it_is_what_they_say():
    (update,) = sent([[1, 1, 1]], 5)
    same = [SiteUpdate(name, n, update.labelled, update.delta) for n, name in enumerate("abcd", start=1)]
    for mean in MEANS:
        config = RunConfig.from_flat({"pet.method": "norm", "strategy.mean": mean, "strategy.trim": 0.3})
        start = AdapterState({name: torch.zeros(shape) for name, shape in SCHEMA.shapes}, {})
        outcome = fold(start, same, SCHEMA, {}, config)
        assert all(torch.equal(outcome.state.tensors[n], update.delta[n]) for n in SCHEMA.names)


def test_fedadam_makes_its_step_of_the_median():
    """Its moments after one round are those of the median: m = (1 - b1) D."""
    config = RunConfig.from_flat(
        {"pet.method": "norm", "strategy.name": "fedadam", "strategy.mean": "median"}
    )
    start = AdapterState({name: torch.zeros(shape) for name, shape in SCHEMA.shapes}, {})
    updates = sent([[1, 1, 1]] * 5, 1)
    outcome = fold(start, updates, SCHEMA, {}, config)
    expected = np.median(stacked(updates, "late"), axis=0) * (1 - 0.9)
    np.testing.assert_allclose(outcome.memory["m:late"].numpy(), expected, rtol=1e-12)


def test_how_many_are_left_out_is_scipys():
    for sites in range(1, 60):
        for share in (0.0, 0.1, 0.15, 0.2, 0.3, 0.45, 0.49999999999):
            kept = sites - 2 * trimmed(sites, share)
            assert kept >= 1
            if abs(share * sites - round(share * sites)) > 1e-6:
                assert trimmed(sites, share) == int(share * sites)


def test_nothing_to_take_the_median_of_is_an_error():
    for mean in (median, lambda updates: trimmed_mean(updates, 0.1)):
        with pytest.raises(SchemaError, match="no update"):
            mean(Spool(SCHEMA))


# ---------------------------------------------------------------------- what has no meaning


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy__mean": "median", "rounds__quorum": 2}, ["quorum = 2", "quorum = 3"]),
        ({"strategy__mean": "trimmed", "rounds__quorum": 4}, ["trim = 0.2", "quorum = 5"]),
        (
            {"strategy__mean": "trimmed", "strategy__trim": 0.0, "rounds__quorum": 9},
            ["trim = 0", "trim = 0.1"],
        ),
        ({"strategy__mean": "median", "lora__aggregation": "fedex", "rounds__quorum": 3}, ["fedex", "'ffa'"]),
        ({"strategy__mean": "trimmed", "lora__aggregation": "fedex", "rounds__quorum": 9}, ["fedex"]),
    ],
)
def test_a_mean_that_leaves_nobody_out_is_refused(make_config, settings, words):
    with pytest.raises(ConfigError) as caught:
        check_strategy(make_config(**settings))
    text = " ".join(str(caught.value).split())
    assert settings["strategy__mean"] in text and all(word in text for word in words)


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy__mean": "median", "rounds__quorum": 3},
        {"strategy__mean": "trimmed", "rounds__quorum": 5},
        {"strategy__mean": "trimmed", "strategy__trim": 0.34, "rounds__quorum": 3},
        {"strategy__mean": "median", "rounds__quorum": 3, "lora__aggregation": "rolora"},
        {"strategy__mean": "median", "rounds__quorum": 3, "strategy__name": "fedadam", "pet__method": "norm"},
    ],
)
def test_the_others_are_allowed(make_config, settings):
    check_strategy(make_config(**settings))


def test_without_a_weighted_mean_there_is_no_error_to_meter(make_config):
    names = {"blocks.0.lora_A.weight": (2, 3), "blocks.0.lora_B.weight": (4, 2)}
    schema = AdapterSchema(tuple(names.items()))
    start = AdapterState({name: torch.ones(shape) for name, shape in names.items()}, {})
    updates = [SiteUpdate(s, 1, np.ones(1), {n: torch.ones(x) for n, x in names.items()}) for s in "abc"]
    config = make_config(strategy__mean="median", rounds__quorum=3, pet__rank=2)
    assert fold(start, updates, schema, {}, config).lora_error is None
    assert fold(start, updates, schema, {}, make_config(pet__rank=2)).lora_error == pytest.approx(0, abs=1e-6)
