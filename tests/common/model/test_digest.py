"""The base keeps one digest whatever PET does to the network, and loses it with one changed value."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from common.code import code_digest
from common.model.digest import tensor_digest

METHODS = ("head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full")
VARIANTS = [
    *({"pet__method": method, "pet__scope": scope} for method in METHODS for scope in ("all", "last-2")),
    {"pet__targets": "q, v"},
    {"pet__targets": "q, k, v, fc1", "pet__scope": "last-3", "pet__final_norm": True},
    {"pet__method": "vera", "pet__targets": "k, fc2"},
]


@pytest.fixture(scope="module")
def base(make_model):
    return make_model(pet__method="head").base_digest


def train(model, images, steps=3):
    """Take a few steps on random labels; returns whether every tensor moved."""
    model.train_mode(True)
    before = model.state().tensors
    optimizer = torch.optim.AdamW(model.parameters.values(), lr=0.01, weight_decay=0.1)
    target = torch.tensor([[0.0, 1, 0, 1], [1, 0, 0, 1]])
    for _ in range(steps):
        loss = nn.functional.binary_cross_entropy_with_logits(model.forward(images(model)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.state().tensors
    return all(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_one_base_one_digest(make_model, images, moved, base, variant):
    model = make_model(**variant)
    assert model.base_digest == base
    assert model.current_base_digest() == base
    model.load(moved(model))
    assert model.current_base_digest() == base
    model.load(model.initial_state())
    assert train(model, images)
    assert model.current_base_digest() == base


@pytest.mark.parametrize("backbone", ["test_resnet", "densenet121", "test_efficientnet", "test_convnext"])
def test_one_digest_on_other_families(make_model, images, backbone):
    digests = set()
    for method in ("head", "lora", "bitfit", "norm", "full"):
        model = make_model(model__backbone=f"timm:{backbone}", pet__method=method)
        train(model, images, steps=1)
        digests |= {model.base_digest, model.current_base_digest()}
    assert len(digests) == 1


def nudge(tensor):
    with torch.no_grad():
        tensor.view(-1)[-1] += 1e-3


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
@pytest.mark.parametrize("layer", ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.5.mlp.fc2"])
def test_one_changed_base_weight_is_noticed(make_model, base, method, layer):
    model = make_model(pet__method=method)
    module = model.net.get_submodule(layer)
    if not hasattr(module, "weight"):
        module = module.v
    nudge(getattr(module, "base_layer", module).weight)
    assert model.current_base_digest() != base


def test_a_changed_part_of_a_split_projection_is_noticed(make_model, base):
    model = make_model(pet__targets="q, v")
    for part in ("q", "k", "v"):
        module = model.net.get_submodule(f"blocks.2.attn.qkv.{part}")
        weight = getattr(module, "base_layer", module).weight
        kept = weight.detach().clone()
        nudge(weight)
        assert model.current_base_digest() != base
        with torch.no_grad():
            weight.copy_(kept)
    assert model.current_base_digest() == base


def test_a_changed_running_statistic_is_noticed(make_model):
    model = make_model(model__backbone="timm:test_resnet", pet__method="norm")
    nudge(model.net.bn1.running_var)
    assert model.current_base_digest() != model.base_digest


def test_the_head_is_not_part_of_the_base(make_model):
    settings = {"model__backbone": "embedded", "data__image_size": 96, "pet__method": "head"}
    model, other = make_model(**settings), make_model(**settings, data__findings="edema")
    assert model.base_digest == other.base_digest
    nudge(model.net.head.weight)
    assert model.current_base_digest() == other.base_digest


def test_every_part_of_a_tensor_s_identity_counts():
    one = torch.arange(6.0)
    variants = [
        {"a": one},
        {"b": one},
        {"a": one.reshape(2, 3)},
        {"a": one.reshape(3, 2)},
        {"a": one.double()},
        {"a": one, "b": one},
        {"a": -one},
        {"a": one.view(torch.int32)},
        {},
    ]
    assert len({tensor_digest(v) for v in variants}) == len(variants)


def test_order_and_memory_layout_do_not_count():
    a, b = torch.randn(3, 4), torch.tensor(3)
    assert tensor_digest({"a": a, "b": b}) == tensor_digest({"b": b, "a": a.T.contiguous().T})


def test_the_definition_by_hand():
    text = b"w|(2,)|torch.float32|" + b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert tensor_digest({"w": torch.tensor([1.0, 2.0])}) == hashlib.sha256(text).hexdigest()


def test_code_digest_is_of_this_tree():
    assert code_digest() == code_digest()
    assert len(code_digest()) == 64
