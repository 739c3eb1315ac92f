"""Products of many sites' factors are added up a few at a time, and come out as if all lay side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.adapter import AdapterState
from common.phase import trained_names
from server.spool import Spool
from server.strategies.lora import products
from server.strategies.lora.fedex import compress, exact_residual
from server.strategies.lora.products import dense_mean, pieces
from tests.server.folding import fold

MANY = tuple(range(1, 41))


@pytest.fixture
def fedex(make_config):
    return make_config(lora__aggregation="fedex", pet__rank=3, lora__alpha=7.5)


@pytest.fixture(scope="module")
def moved(federation) -> AdapterState:
    """A state whose B is not zero."""
    return federation.start().plus(federation.updates(0, (1,))[0].delta)


@pytest.mark.parametrize("inner", [1, 20, 10_000])
def test_pieces_add_up_to_the_mean_of_products(federation, moved, monkeypatch, inner) -> None:
    monkeypatch.setattr(products, "_INNER", inner)
    updates = federation.updates(3, MANY)
    held = Spool.of(updates[::-1], federation.schema)
    for layer in federation.layers:
        widths = [right.shape[0] for _, right in pieces(moved, held, layer)]
        assert sum(widths) == 40 * federation.rank and max(widths) <= max(
            inner + federation.rank, federation.rank
        )
        expected = federation.dense_mean(moved, sorted(updates, key=lambda update: update.site), layer)
        np.testing.assert_allclose(dense_mean(moved, held, layer).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("number", [1, 2])
def test_a_factor_out_of_turn_is_taken_from_the_start(federation, moved, make_config, number) -> None:
    """rolora trains and sends one factor a round."""
    config = make_config(lora__aggregation="rolora", pet__rank=3)
    schema = federation.schema.select(trained_names(federation.schema, config, number))
    updates = federation.updates(number, names=schema.names)
    for layer in federation.layers:
        found = dense_mean(moved, Spool.of(updates, schema), layer).numpy()
        np.testing.assert_allclose(
            found, federation.dense_mean(moved, updates, layer), rtol=1e-10, atol=1e-12
        )


def test_forty_sites_leave_the_exact_residual(federation, moved, fedex) -> None:
    updates = federation.updates(5, MANY)
    outcome = fold(moved, updates, federation.schema, {}, fedex)
    ordered = sorted(updates, key=lambda update: update.site)
    for layer, shape in federation.layers.items():
        target = 2.5 * federation.dense_mean(moved, ordered, layer)
        applied = 2.5 * federation.low_rank(outcome.state, layer) + federation.residual(outcome.state, layer)
        assert np.linalg.norm(applied - target) < 1e-6 * np.linalg.norm(target)
        assert outcome.state.residual[layer].right.shape[0] <= min(shape)
    assert outcome.lora_error < 1e-6


def test_taking_the_layer_apart_is_compressing_the_stack(federation, moved, fedex) -> None:
    """Either way leads to the same product; with many sites only one of them is gone."""
    updates = Spool.of(federation.updates(7, MANY), federation.schema)
    after = fold(moved, federation.updates(7, MANY), federation.schema, {}, fedex).state
    apart = exact_residual(moved, after, updates, fedex)
    for layer in federation.layers:
        (stack,) = pieces(moved, updates, layer)
        b = after.tensors[f"{layer}.lora_B.weight"].double().flatten(1)
        a = after.tensors[f"{layer}.lora_A.weight"].double().flatten(1)
        whole = compress(torch.cat([2.5 * stack[0], -2.5 * b], 1), torch.cat([stack[1], a], 0), 0.0)
        found = apart.residual[layer]
        torch.testing.assert_close(found.left @ found.right, whole.left @ whole.right, rtol=1e-5, atol=1e-6)
        assert found.right.shape == whole.right.shape
