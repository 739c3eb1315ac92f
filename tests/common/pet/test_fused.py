"""The fused LoRA layer against peft's own forward and torch's own gradients."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from common.model.product import plain_products
from common.pet.fused import FusedLinear, _Merged, fuse

TOKENS = (4, 65)


def pair(into=96, out=160, **over):
    """Two networks of one LoRA layer with the same values: peft's, and ours."""
    described = {"r": 4, "lora_alpha": 6.0, "target_modules": ["layer"], "bias": "none"} | over
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        net = nn.ModuleDict({"layer": nn.Linear(into, out)})
        net.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(**described), net)
        nn.init.normal_(net["layer"].lora_B["default"].weight)
        nets.append(net)
    assert fuse(nets[1]) == 1
    return nets[0]["layer"], nets[1]["layer"]


def compute(layer, x, grad):
    x = x.clone().requires_grad_(True)
    y = layer(x)
    wanted = (x, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    return (y, *torch.autograd.grad(y, wanted, grad))


@pytest.fixture
def x():
    return torch.randn(*TOKENS, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def grad():
    return torch.randn(*TOKENS, 160, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("plain", [False, True])
def test_value_and_gradients_are_peft_s(x, grad, plain):
    theirs, ours = pair()
    expected = compute(theirs, x, grad)
    if plain:
        with plain_products():
            got = compute(ours, x, grad)
    else:
        got = compute(ours, x, grad)
    assert "_Merged" in type(got[0].grad_fn).__name__
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-5)
    for mine, other in zip(got, expected, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


def test_gradients_in_float64_by_finite_differences():
    """The formulas themselves, by torch's own check."""
    generator = torch.Generator().manual_seed(2)
    x, w, a, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 3, 5), (7, 5), (2, 5), (7, 2))
    )
    inputs = [t.requires_grad_(True) for t in (x, a, b)]
    assert torch.autograd.gradcheck(lambda x, a, b: _Merged.apply(x, w, None, a, b, 1.5), inputs)


def test_only_wanted_gradients_are_computed(x, grad):
    """``rolora`` freezes A or B, and before the first trained layer nothing wants a gradient of x."""
    _, ours = pair()
    ours.lora_A["default"].weight.requires_grad_(False)
    ours(x).backward(grad)
    assert ours.lora_A["default"].weight.grad is None
    assert ours.lora_B["default"].weight.grad is not None
    assert ours.base_layer.weight.grad is None


def test_names_and_saved_adapters_are_peft_s():
    theirs, ours = pair()
    assert isinstance(ours, PeftLinear)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }


@pytest.mark.parametrize("over", [{"use_dora": True}, {"lora_bias": True}])
def test_peft_s_variants_keep_peft_s_forward(over):
    net = nn.ModuleDict({"layer": nn.Linear(96, 160)})
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["layer"], **over), net)
    assert fuse(net) == 0
    assert not isinstance(net["layer"], FusedLinear)


def test_dropout_is_peft_s_while_training(x):
    theirs, ours = pair(lora_dropout=0.5)
    said = []
    for layer in (theirs, ours):
        torch.manual_seed(5)
        said.append(layer.train()(x))
    torch.testing.assert_close(said[0], said[1], atol=0, rtol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-4, rtol=1e-5)


def test_autocast_is_peft_s(x):
    """In bf16 a small update would be rounded away with the weight it is added to."""
    theirs, ours = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x), atol=0, rtol=0)


def test_a_switched_off_or_merged_adapter_is_peft_s(x):
    theirs, ours = pair()
    for layer in (theirs, ours):
        layer.enable_adapters(False)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    for layer in (theirs, ours):
        layer.enable_adapters(True)
        layer.merge()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_it_maps_under_torch_func(x):
    """Several sites' factors in one pass: ``vmap`` gives what one call for each does."""
    from torch.func import functional_call, vmap

    _, ours = pair()
    name = "lora_B.default.weight"
    stacked = torch.stack([ours.get_parameter(name) * k for k in (1.0, -2.0)]).detach()
    mapped = vmap(lambda b: functional_call(ours, {name: b}, (x,)))(stacked)
    for b, said in zip(stacked, mapped, strict=True):
        torch.testing.assert_close(said, functional_call(ours, {name: b}, (x,)), atol=1e-4, rtol=1e-5)


def test_the_same_bits_twice(x, grad):
    _, ours = pair()
    for one, two in zip(compute(ours, x, grad), compute(ours, x, grad), strict=True):
        assert torch.equal(one, two)


def test_a_model_s_lora_layers_are_fused(make_model):
    from common.model.qkv import SplitQKV

    model = make_model(pet__targets="q,v,fc1", pet__scope="last-2")
    layers = [m for m in model.net.modules() if isinstance(m, PeftLinear)]
    assert len(layers) == 6
    assert all(type(layer) is FusedLinear for layer in layers)
    assert isinstance(model.net.blocks[-1].attn.qkv, SplitQKV)
