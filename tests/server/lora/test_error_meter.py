"""The meter ||M - M_applied|| / ||M||: zero where a factor is frozen, the covariance where none is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import RunConfig
from common.phase import trained_names
from tests.server.folding import fold


def config(aggregation, strategy="fedavg"):
    return RunConfig.from_flat(
        {
            "pet.rank": 3,
            "lora.alpha": 7.5,
            "lora.aggregation": aggregation,
            "strategy.name": strategy,
            "data.findings": "edema, mass",
        }
    )


def run(federation, aggregation, rounds=4, strategy="fedavg"):
    """Run rounds of drifting sites; returns each round's error."""
    state, memory, errors = federation.start(), {}, []
    for number in range(1, rounds + 1):
        schema = federation.schema.select(trained_names(federation.schema, config(aggregation), number))
        updates = federation.updates(number, names=schema.names)
        outcome = fold(state, updates, schema, memory, config(aggregation, strategy))
        state, memory = outcome.state, outcome.memory
        errors.append(outcome.lora_error)
    return errors


@pytest.mark.parametrize("aggregation", ["ffa", "rolora", "fedex"])
def test_exact_rules_have_no_error(federation, aggregation):
    assert max(run(federation, aggregation)) < 1e-6


def test_averaging_both_factors_has_one(federation):
    assert min(run(federation, "fedit")) > 1e-3


@settings(max_examples=25)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5), st.floats(0.01, 2.0), st.integers(0, 1000))
def test_the_error_is_the_weighted_covariance_of_the_factors(federation, examples, drift, seed):
    """M - B A = sum_i w_i (B_i - B) (A_i - A), with A and B the weighted means."""
    state = fold(
        federation.start(), federation.updates(seed + 1), federation.schema, {}, config("fedit")
    ).state
    updates = federation.updates(seed, tuple(examples), drift)
    outcome = fold(state, updates, federation.schema, {}, config("fedit"))
    weights = np.array(examples) / sum(examples)
    gap = size = 0.0
    for layer in federation.layers:
        a, b = federation.factors(state, updates, layer)
        mean_a, mean_b = np.tensordot(weights, a, 1), np.tensordot(weights, b, 1)
        covariance = sum(
            w * (b_i - mean_b) @ (a_i - mean_a) for w, a_i, b_i in zip(weights, a, b, strict=True)
        )
        gap += np.linalg.norm(covariance) ** 2
        size += np.linalg.norm(federation.dense_mean(state, updates, layer)) ** 2
    assert outcome.lora_error == pytest.approx(np.sqrt(gap / size), rel=1e-3, abs=1e-6)


def test_the_error_is_of_second_order_in_the_drift(federation):
    """A tenth of the drift is about a hundredth of the error."""
    state = fold(federation.start(), federation.updates(1), federation.schema, {}, config("fedit")).state
    errors = [
        fold(state, federation.updates(2, drift=d), federation.schema, {}, config("fedit")).lora_error
        for d in (1e-1, 1e-2)
    ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.3)


def test_one_site_has_no_error_under_any_rule(federation):
    for aggregation in ("fedit", "fedex"):
        updates = federation.updates(1, (9,))
        outcome = fold(federation.start(), updates, federation.schema, {}, config(aggregation))
        assert outcome.lora_error < 1e-6


def test_adapters_at_their_start_have_no_error_to_speak_of(federation):
    """B = 0 at every site: M = 0, and the ratio is defined as 0."""
    updates = federation.updates(1, names=["blocks.0.fc1.lora_A.weight"])
    schema = federation.schema.select(["blocks.0.fc1.lora_A.weight"])
    outcome = fold(federation.start(), updates, schema, {}, config("fedit"))
    assert outcome.lora_error == 0.0


def test_no_lora_no_meter(federation):
    plain = RunConfig.from_flat({"pet.method": "norm", "data.findings": "edema, mass"})
    outcome = fold(federation.start(), federation.updates(1), federation.schema, {}, plain)
    assert outcome.lora_error is None
