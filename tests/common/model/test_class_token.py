"""The last block at its class token says what timm's own whole block says, and learns the same."""

from __future__ import annotations

import pytest
import timm
import torch

from common.adapter import AdapterState, Factors
from common.model.architecture import architecture_of

BACKBONE = "timm:test_vit"
METHODS = ("head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full")


def gradients(model, logits):
    model.net.zero_grad()
    torch.nn.functional.softplus(logits).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.parameters.items() if p.requires_grad}


def assert_like_timm(model, x, tolerance=1e-5):
    """Logits and the gradient of every trained tensor are those of the network's own forward pass."""
    ours, theirs = model.forward(x), model.net(x)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    mine, other = gradients(model, ours), gradients(model, theirs)
    assert mine.keys() == other.keys() and len(mine) > 0
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], atol=tolerance, rtol=1e-3, msg=name)


def last_output(model, x):
    """What the last block puts out, as the pooling gets it."""
    return model.prefix(x, len(model.arch.blocks))


@pytest.mark.parametrize("scope", ["all", "last-1"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_computes_and_learns_as_in_timm_s_block(make_model, images, moved, method, scope):
    model = make_model(model__backbone=BACKBONE, pet__method=method, pet__scope=scope, pet__final_norm=True)
    model.load(moved(model))
    assert last_output(model, images(model)).shape[1] == 1
    assert_like_timm(model, images(model))


@pytest.mark.parametrize("targets", [("q", "v"), ("k",), ("qkv",), ("proj", "fc1")])
def test_parts_of_a_fused_projection(make_model, images, moved, targets):
    model = make_model(model__backbone=BACKBONE, pet__targets=targets)
    model.load(moved(model))
    assert_like_timm(model, images(model))


def test_keys_and_values_are_not_formed(make_model, images):
    """Where qkv is one matrix its layer is never called for the last block."""
    model = make_model(model__backbone=BACKBONE)
    called = []
    for block in model.arch.blocks:
        layer = model.net.get_submodule(f"{block}.attn.qkv")
        forward = layer.forward
        layer.forward = lambda x, block=block, forward=forward: called.append(block) or forward(x)
    model.forward(images(model))
    assert called == [*model.arch.blocks[:-1]]


def test_a_residual_over_the_projection_counts(make_model, images, moved):
    """fedex lays a matrix over a layer by a hook, which only the layer itself knows of."""
    model = make_model(model__backbone=BACKBONE)
    layer = f"{model.arch.blocks[-1]}.attn.qkv"
    base = model.net.get_submodule(layer).base_layer
    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.randn(shape, generator=generator) * 0.3
        for shape in ((base.out_features, 2), (2, base.in_features))
    )
    state = moved(model)
    model.load(state)
    before = model.forward(images(model))
    model.load(AdapterState(state.tensors, {layer: Factors(left, right)}))
    assert not torch.allclose(model.forward(images(model)), before, atol=1e-3)
    assert_like_timm(model, images(model))


def test_dropout_on_the_adapter_draws_for_every_token(make_model, images, moved):
    """Which makes the layer no matrix: it is called. So rare a dropout leaves the values as they are."""
    model = make_model(model__backbone=BACKBONE, lora__dropout=1e-9)
    model.load(moved(model))
    called = []
    qkv = model.net.get_submodule(f"{model.arch.blocks[-1]}.attn.qkv")
    forward = qkv.forward
    qkv.forward = lambda x: called.append(x.shape[1]) or forward(x)
    x = images(model)
    model.forward(x)
    assert not called
    model.train_mode(True)
    model.forward(x)
    assert len(called) == 1 and called[0] > 1
    assert_like_timm(model, x)


def test_mean_pooling_reads_every_token(make_model, images, moved):
    model = make_model(model__backbone=BACKBONE, model__pool="avg")
    model.load(moved(model))
    assert last_output(model, images(model)).shape[1] > 1
    assert_like_timm(model, images(model))


@pytest.mark.parametrize("arguments", [{"qk_norm": True}, {"init_values": 0.1}, {"scale_attn_norm": True}])
def test_settings_of_the_block(arguments):
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=3, global_pool="token", **arguments).eval()
    arch = architecture_of(net)
    x = torch.randn(2, *net.pretrained_cfg["input_size"])
    with torch.no_grad():
        last = arch.run(net, arch.stem(net, x), 0, len(arch.blocks), to_pool=True)
        assert last.shape[1] == 1
        torch.testing.assert_close(net.get_classifier()(arch.pool(net, last)), net(x), atol=1e-5, rtol=1e-5)


def test_a_hook_on_the_block_sees_the_whole_block(make_model, images):
    model = make_model(model__backbone=BACKBONE)
    seen = []
    model.net.get_submodule(model.arch.blocks[-1]).register_forward_hook(
        lambda m, a, out: seen.append(out.shape)
    )
    model.forward(images(model))
    assert len(seen) == 1 and seen[0][1] > 1


def test_below_fp32_the_update_is_not_rounded_into_the_weight(make_model, images, moved):
    """bf16 has 8 bits: an update smaller than 1/256 of a weight would be lost in their sum."""
    model = make_model(model__backbone=BACKBONE)
    model.load(moved(model))
    called = []
    qkv = model.net.get_submodule(f"{model.arch.blocks[-1]}.attn.qkv")
    qkv.register_forward_pre_hook(lambda m, a: called.append(1))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        said, expected = model.forward(images(model)), model.net(images(model))
    assert len(called) == 2
    torch.testing.assert_close(said.float(), expected.float(), atol=0.05, rtol=0.05)
