"""fedex applies exactly s sum_i w_i B_i A_i, round after round, against a dense float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from common.adapter import AdapterState
from common.model.build import build_model
from server.strategies.lora.fedex import compress
from server.update import SiteUpdate
from tests.server.folding import fold


@pytest.fixture
def fedex(make_config):
    return make_config(lora__aggregation="fedex", pet__rank=3, lora__alpha=7.5)


SCALE = 7.5 / 3


@pytest.mark.parametrize("examples", [(1, 1), (5, 70, 11), (1, 1, 1, 1, 1), (1000, 1)])
@pytest.mark.parametrize("drift", [0.01, 1.0])
def test_effective_update_is_the_dense_one_over_rounds(federation, fedex, examples, drift):
    """After round t: residual_t + s B_t A_t = residual_(t-1) + s M_t, and the meter says so."""
    state = federation.start()
    kept = {layer: np.zeros(shape) for layer, shape in federation.layers.items()}
    for number in range(1, 5):
        updates = federation.updates(number, examples, drift)
        outcome = fold(state, updates, federation.schema, {}, fedex)
        for layer in federation.layers:
            target = kept[layer] + SCALE * federation.dense_mean(state, updates, layer)
            mean = SCALE * federation.low_rank(outcome.state, layer)
            effective = mean + federation.residual(outcome.state, layer)
            error = np.linalg.norm(effective - target) / np.linalg.norm(target)
            assert error < 1e-5
            kept[layer] = target - mean
        assert outcome.lora_error < 1e-6
        state = outcome.state
    assert set(state.residual) == set(federation.layers)


def test_factors_are_still_the_plain_means(federation, fedex, make_config):
    updates = federation.updates(1)
    fedit = make_config(pet__rank=3, lora__alpha=7.5)
    exact = fold(federation.start(), updates, federation.schema, {}, fedex).state
    plain = fold(federation.start(), updates, federation.schema, {}, fedit).state
    assert AdapterState(exact.tensors, {}).digest() == plain.digest()


def test_who_answers_first_changes_no_bit(federation, fedex):
    updates = federation.updates(1)
    results = [
        fold(federation.start(), order, federation.schema, {}, fedex)
        for order in (updates, updates[::-1], [updates[1], updates[2], updates[0]])
    ]
    assert len({outcome.state.digest() for outcome in results}) == 1
    assert len({outcome.lora_error for outcome in results}) == 1


def test_rank_stays_within_the_layer(federation, fedex):
    state = federation.start()
    ranks = []
    for number in range(1, 7):
        state = fold(state, federation.updates(number, (1, 2)), federation.schema, {}, fedex).state
        ranks.append([state.residual[layer].left.shape[1] for layer in federation.layers])
        for layer, (out, inside) in federation.layers.items():
            kept = state.residual[layer]
            assert kept.left.shape == (out, kept.right.shape[0])
            assert kept.right.shape == (kept.right.shape[0], inside)
            assert kept.left.dtype == kept.right.dtype == torch.float32
    assert ranks[0] == [3, 3]
    assert ranks[-1] == [7, 9]


def test_one_site_leaves_no_residual(federation, fedex):
    outcome = fold(federation.start(), federation.updates(1, (4,)), federation.schema, {}, fedex)
    assert outcome.state.residual == {}
    assert outcome.lora_error < 1e-6


def test_sites_that_agree_leave_no_residual(federation, fedex):
    update = federation.updates(1, (4,))[0]
    same = [SiteUpdate(name, 4, update.labelled, update.delta) for name in "abc"]
    outcome = fold(federation.start(), same, federation.schema, {}, fedex)
    assert outcome.state.residual == {}


def test_an_old_residual_survives_a_round_without_a_new_one(federation, fedex):
    first = fold(federation.start(), federation.updates(1), federation.schema, {}, fedex).state
    second = fold(first, federation.updates(2, (4,)), federation.schema, {}, fedex).state
    for layer in federation.layers:
        before, after = federation.residual(first, layer), federation.residual(second, layer)
        assert np.linalg.norm(after - before) < 1e-6 * np.linalg.norm(before)


def test_compress_returns_the_product_at_its_rank():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    padded = compress(torch.cat([left, left], 1), torch.cat([right, right], 0), 0.0)
    assert padded.left.shape == (6, 2) and padded.right.shape == (2, 9)
    torch.testing.assert_close(padded.left @ padded.right, (2 * left @ right).float())
    assert compress(torch.cat([left, -left], 1), torch.cat([right, right], 0), 1.0) is None


@pytest.mark.parametrize(
    ("backbone", "targets"), [("test_vit", ""), ("test_vit", "q, v"), ("test_resnet", "")]
)
def test_the_model_computes_with_the_sum_of_products(make_config, backbone, targets):
    """Two rounds, three sites, then the plain timm network with s sum_i w_i B_i A_i in its weights.

    Round 2 starts from round 1's factors, so what its mean took over from round 1 is counted once.
    """
    config = make_config(
        model__backbone=f"timm:{backbone}", pet__targets=targets, pet__rank=4, lora__aggregation="fedex",
        data__image_size=64,
    )  # fmt: skip
    model = build_model(config)
    base = build_model(config.model_copy(update={"pet": config.pet.model_copy(update={"method": "head"})}))
    plain = timm.create_model(backbone, num_classes=4, **({"img_size": 64} if "vit" in backbone else {}))
    plain.load_state_dict(base.net.state_dict())
    plain.eval()
    state, weights = model.initial_state(), {"a": 3, "b": 5, "c": 12}
    dense: dict[str, torch.Tensor] = {}
    for number in (1, 2):
        updates = []
        for i, (name, n) in enumerate(weights.items()):
            generator = torch.Generator().manual_seed(10 * number + i)
            delta = {k: 0.05 * torch.randn(s, generator=generator) for k, s in model.schema.shapes}
            updates.append(SiteUpdate(name, n, np.full(4, n), delta))
        after = fold(state, updates, model.schema, {}, config).state
        for name in [n for n in state.tensors if ".lora_A." in n]:
            layer = name.partition(".lora_A.")[0]
            product = sum(u.num_examples / 20 * matrix(state.plus(u.delta), layer) for u in updates)
            taken_over = matrix(state, layer)
            dense[layer] = dense.get(layer, 0) + 4.0 * (product - taken_over)
        state = after
    with torch.no_grad():
        for layer, update in dense.items():
            parent, _, part = layer.rpartition(".")
            if part in ("q", "k", "v"):
                row = 64 * "qkv".index(part)
                plain.get_submodule(parent).weight[row : row + 64] += update.float()
            else:
                weight = plain.get_submodule(layer).weight
                weight += update.float().reshape(weight.shape)
        classifier = plain.get_classifier()
        classifier.weight.copy_(state.tensors[f"{model.head_name}.weight"])
        classifier.bias.copy_(state.tensors[f"{model.head_name}.bias"])
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        model.load(state)
        said = model.forward(x)
        scale = said.abs().max()
        torch.testing.assert_close(said / scale, plain(x) / scale, atol=2e-5, rtol=1e-4)
        model.load(AdapterState(state.tensors, {}))
        assert (model.forward(x) - said).abs().max() > 1e-3 * scale
    assert model.current_base_digest() == model.base_digest


def matrix(state, layer):
    a = state.tensors[f"{layer}.lora_A.weight"].double()
    b = state.tensors[f"{layer}.lora_B.weight"].double()
    return b.flatten(1) @ a.flatten(1)
