"""A private low-rank update beside a released adapter: where it lies, what it adds, what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from common.adapter import AdapterState
from common.errors import SchemaError, TargetError
from common.model.dual import PRIVATE_A, PRIVATE_B, DualModel, private_layers

METHODS = ["head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full"]
LINEAR = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (192, 64), "mlp.fc2": (64, 192)}
"""Linear layers of a block of timm's test_vit with what they put out and take in."""


@pytest.fixture
def dual(make_model, moved):
    """A released adapter after some training, and a private update beside it."""

    def make(**over):
        model = make_model(**over)
        model.load(moved(model))
        return model, DualModel(model, "north")

    return make


def say(model, dual, images):
    model.train_mode(False)
    with torch.no_grad(), dual.laid():
        return dual.forward(images(model))


@pytest.mark.parametrize("method", METHODS)
def test_it_begins_as_the_released_model_for_every_method(dual, images, logits, method):
    model, own = dual(pet__method=method)
    torch.testing.assert_close(say(model, own, images), logits(model), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_it_adds_its_product_to_every_linear_layer_of_the_base(dual, moved, images, method):
    """Against the same matrices folded into the weights of the base."""
    model, own = dual(pet__method=method, personalise__rank=3, lora__alpha=6.0)
    if method == "ia3":
        model.load(model.initial_state())  # its scales would scale what is folded in
    assert {name: size for name, size in own._layers.items() if name.startswith("blocks.0.")} == {
        f"blocks.0.{layer}": size for layer, size in LINEAR.items()
    }
    private = moved(own, step=0.02)
    own.load(private)
    said = say(model, own, images)
    before = say(model, DualModel(model, "north"), images)
    assert (said - before).abs().max() > 1e-3
    with torch.no_grad():
        for layer in own._layers:
            inner, outer = (private.tensors[layer + end] for end in (PRIVATE_A, PRIVATE_B))
            weights = [module.weight for module in plain(model.net.get_submodule(layer))]
            delta = (2.0 * outer @ inner).split([len(weight) for weight in weights])
            for weight, part in zip(weights, delta, strict=True):
                weight += part
        torch.testing.assert_close(model.forward(images(model)), said, rtol=1e-4, atol=1e-5)


def plain(layer):
    """The frozen layers that one layer is made of, whatever PET has laid around them."""
    parts = [layer.q, layer.k, layer.v] if hasattr(layer, "q") else [layer]
    return [getattr(part, "base_layer", part) for part in parts]


def test_released_adapter_and_base_are_left_alone(dual, moved, images, logits):
    model, own = dual()
    before, adapter = logits(model), model.state().digest()
    own.load(moved(own))
    say(model, own, images)
    assert torch.equal(logits(model), before), "what was laid is taken up again"
    assert model.state().digest() == adapter
    assert model.current_base_digest() == model.base_digest
    assert not {*model.schema.names} & {*own.schema.names}, "none of its names travels"
    with pytest.raises(RuntimeError, match="stop"), own.laid():
        raise RuntimeError("stop")
    assert torch.equal(logits(model), before), "also where something went wrong meanwhile"


def test_a_residual_stays_where_it_is(dual, moved, images, logits, make_model):
    from common.adapter import Factors

    model = make_model(lora__aggregation="fedex")
    generator = torch.Generator().manual_seed(0)
    # Not of equal values: a norm's outputs sum to zero.
    left, right = (torch.randn(shape, generator=generator) for shape in ((192, 1), (1, 64)))
    state = AdapterState(moved(model).tensors, {"blocks.0.attn.qkv": Factors(left, right)})
    model.load(state)
    own, before = DualModel(model, "north"), logits(model)
    own.load(own.initial_state())
    torch.testing.assert_close(say(model, own, images), before, atol=1e-6, rtol=1e-5)
    model.load(AdapterState(state.tensors, {}))
    assert not torch.allclose(logits(model), before, atol=1e-3)


def test_each_site_draws_its_own_and_the_scope_bounds_it(dual):
    model, own = dual(pet__scope="last-2")
    assert {name.split(".attn")[0].split(".mlp")[0] for name in own._layers} == {*model.arch.last(2)}
    assert own.frozen_blocks == len(model.arch.blocks) - 2
    again, other = DualModel(model, "north"), DualModel(model, "south")
    assert again.state().digest() == own.state().digest() != other.state().digest()


def test_a_private_update_of_another_form_is_refused(dual):
    _, own = dual()
    with pytest.raises(SchemaError):
        own.load(AdapterState({}, {}))


@pytest.mark.parametrize("backbone", ["test_resnet", "densenet121"])
def test_a_backbone_without_linear_layers_is_refused(make_model, backbone):
    model = make_model(model__backbone=f"timm:{backbone}", pet__method="norm", personalise__method="dual")
    with pytest.raises(TargetError, match=r"personalise\.method = 'dual'") as caught:
        private_layers(model)
    assert "private-head" in caught.value.fix
