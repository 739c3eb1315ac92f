"""Targets match by name or fail by name."""

from __future__ import annotations

import pytest
import torch

from common.errors import ModelError, TargetError


def adapted(model, mark=".lora_A."):
    return {name.partition(mark)[0] for name in model.schema.names if mark in name}


def test_an_unmatched_target_fails_by_name_and_lists_what_there_is(make_model):
    with pytest.raises(TargetError) as caught:
        make_model(pet__targets="qkv, key_proj")
    assert "'key_proj'" in caught.value.problem
    assert "'qkv'" not in caught.value.problem
    assert caught.value.found == "fc1, fc2, proj, qkv"
    assert caught.value.fix


@pytest.mark.parametrize("method", ["lora", "vera", "ia3"])
def test_every_method_with_targets_fails_by_name(make_model, method):
    with pytest.raises(TargetError, match="'nope'"):
        make_model(pet__method=method, pet__targets="nope")


def test_a_part_together_with_the_whole_is_refused(make_model):
    with pytest.raises(TargetError, match="qkv"):
        make_model(pet__targets="qkv, q")


@pytest.mark.parametrize("method", ["lora", "bitfit", "adapter", "vera", "ia3", "norm", "full"])
def test_more_blocks_than_there_are_is_refused(make_model, method):
    with pytest.raises(ModelError) as caught:
        make_model(pet__method=method, pet__scope="last-7")
    assert "last-7" in caught.value.problem
    assert caught.value.found == "6 blocks"
    assert "last-6" in caught.value.fix


def test_scope_adapts_the_last_blocks_only(make_model):
    layers = adapted(make_model(pet__scope="last-2", pet__targets="qkv, fc1"))
    assert layers == {f"blocks.{i}.{leaf}" for i in (4, 5) for leaf in ("attn.qkv", "mlp.fc1")}


def test_proj_is_the_attention_s_and_never_the_patch_embedding_s(make_model):
    layers = adapted(make_model(pet__targets="proj"))
    assert layers == {f"blocks.{i}.attn.proj" for i in range(6)}


def test_only_the_named_parts_are_adapted(make_model):
    layers = adapted(make_model(pet__targets="q, v", pet__scope="last-1"))
    assert layers == {"blocks.5.attn.qkv.q", "blocks.5.attn.qkv.v"}


def test_the_published_targets_of_each_method(make_model):
    block = "blocks.5."
    four = {block + leaf for leaf in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert adapted(make_model(pet__scope="last-1")) == four
    vera = make_model(pet__scope="last-1", pet__method="vera")
    assert adapted(vera, ".vera_lambda_d") == four
    ia3 = make_model(pet__scope="last-1", pet__method="ia3")
    expected = {block + leaf for leaf in ("attn.qkv.k", "attn.qkv.v", "mlp.fc2")}
    assert adapted(ia3, ".ia3_l") == expected


def test_parts_of_a_fused_projection_say_what_the_whole_says(make_model, logits):
    whole, parts = make_model(pet__method="head"), make_model(pet__targets="q, k, v")
    torch.testing.assert_close(logits(parts), logits(whole), atol=1e-6, rtol=1e-5)


def test_parts_move_their_own_third_of_the_projection(make_model):
    model = make_model(pet__targets="q, v", pet__scope="last-1")
    layer = model.net.get_submodule("blocks.5.attn.qkv")
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    before = layer(x).detach()
    with torch.no_grad():
        model.parameters["blocks.5.attn.qkv.v.lora_B.weight"].fill_(0.1)
    changed = (layer(x) - before).abs().amax(dim=(0, 1)) > 1e-6
    assert not changed[:128].any()
    assert changed[128:].all()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "densenet121", "convnext_atto"])
def test_a_cnn_s_published_targets_are_its_ungrouped_convolutions(make_model, backbone):
    model = make_model(model__backbone=f"timm:{backbone}")
    layers = adapted(model)
    assert layers
    for name in layers:
        base = model.net.get_submodule(name).base_layer
        assert isinstance(base, torch.nn.Conv2d) and base.groups == 1
        assert name.startswith(tuple(f"{block}." for block in model.arch.blocks))


def test_a_convnext_with_linear_layers_has_published_targets_too(make_model):
    layers = adapted(make_model(model__backbone="timm:test_convnext", pet__scope="last-1"))
    assert layers == {"stages.3.blocks.1.mlp.fc1", "stages.3.blocks.1.mlp.fc2"}


@pytest.mark.parametrize(
    ("method", "backbone"),
    [("vera", "test_resnet"), ("ia3", "test_efficientnet"), ("adapter", "densenet121")],
)
def test_a_method_that_a_family_has_no_place_for_says_so(make_model, method, backbone):
    with pytest.raises(TargetError, match=method):
        make_model(model__backbone=f"timm:{backbone}", pet__method=method)
