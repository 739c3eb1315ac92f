"""LoRA, VeRA and IA3 against ``peft`` wrapped around the plain timm network by the library itself."""

from __future__ import annotations

import pytest
import timm
import torch
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model


@pytest.fixture
def plain(make_model):
    """The timm network with the base and head our models start from."""
    net = timm.create_model("test_vit", img_size=32, num_classes=4)
    net.load_state_dict(make_model(pet__method="head").net.state_dict())
    return net.eval()


LAYERS = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"


def copy_in(theirs, state, marks):
    """Copy our adapter and head into a network ``peft`` has wrapped."""
    live = dict(theirs.base_model.model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.tensors.items():
            if any(mark in name for mark in marks):
                parts = name.removesuffix(".weight")
                name = f"{parts}.default{'.weight' if parts != name else ''}"
            live[name].copy_(tensor)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 16.0), (8, 2.0)])
def test_lora(make_model, moved, logits, images, plain, rank, alpha):
    ours = make_model(pet__rank=rank, lora__alpha=alpha)
    state = moved(ours)
    theirs = get_peft_model(plain, LoraConfig(r=rank, lora_alpha=alpha, target_modules=LAYERS))
    copy_in(theirs, state, (".lora_A.", ".lora_B."))
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, state), theirs.eval()(images(ours)), atol=1e-5, rtol=1e-5)


def test_lora_is_w_plus_alpha_over_r_times_b_a(make_model, moved, logits, images, plain):
    """Hu et al. 2021, eq. 3, with the update added to the plain network's weights by hand."""
    ours = make_model(pet__rank=4, lora__alpha=6.0)
    state = moved(ours)
    with torch.no_grad():
        for name in [n for n in state.tensors if ".lora_A." in n]:
            layer = name.partition(".lora_A.")[0]
            a, b = state.tensors[name], state.tensors[f"{layer}.lora_B.weight"]
            plain.get_submodule(layer).weight += 6.0 / 4 * b @ a
        plain.head.weight.copy_(state.tensors["head.weight"])
        plain.head.bias.copy_(state.tensors["head.bias"])
        torch.testing.assert_close(logits(ours, state), plain(images(ours)), atol=1e-5, rtol=1e-5)


def test_vera(make_model, moved, logits, images, plain):
    ours = make_model(pet__method="vera", pet__rank=8, seed=0)
    state = moved(ours)
    theirs = get_peft_model(plain, VeraConfig(r=8, target_modules=LAYERS, projection_prng_key=0))
    live = dict(theirs.base_model.model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.tensors.items():
            live[name if name.startswith("head") else f"{name}.default"].copy_(tensor)
        torch.testing.assert_close(logits(ours, state), theirs.eval()(images(ours)), atol=1e-5, rtol=1e-5)


def test_ia3_scales_keys_values_and_the_feed_forward_s_input(make_model, moved, logits, images, plain):
    """Liu et al. 2022, section 3.3: no scale on the queries."""
    ours = make_model(pet__method="ia3")
    state = moved(ours)
    config = IA3Config(target_modules=r".*(attn\.qkv|mlp\.fc2)", feedforward_modules=r".*mlp\.fc2")
    theirs = get_peft_model(plain, config)
    live = dict(theirs.base_model.model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.tensors.items():
            if name.startswith("head"):
                live[name].copy_(tensor)
            elif ".qkv." in name:
                part = "qkv".index(name.split(".qkv.")[1][0])
                live[name.split(".qkv.")[0] + ".qkv.ia3_l.default"][64 * part : 64 * (part + 1)] = tensor
            else:
                live[f"{name}.default"].copy_(tensor)
        torch.testing.assert_close(logits(ours, state), theirs.eval()(images(ours)), atol=1e-5, rtol=1e-5)


def test_the_bottleneck_is_houlsby_s_behind_the_mlp(make_model, moved):
    """h + W2 gelu(W1 h + b1) + b2 on the MLP's output (Houlsby et al. 2019, section 2.1)."""
    model = make_model(pet__method="adapter", pet__scope="last-1", pet__bottleneck=5)
    bare = make_model(pet__method="head").net.get_submodule("blocks.5.mlp")
    state = moved(model)
    model.load(state)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    own = {n.rpartition("bottleneck.")[2]: t for n, t in state.tensors.items() if "bottleneck" in n}
    with torch.no_grad():
        h = bare(x)
        inner = torch.nn.functional.gelu(h @ own["down.weight"].T + own["down.bias"])
        expected = h + inner @ own["up.weight"].T + own["up.bias"]
        torch.testing.assert_close(model.net.get_submodule("blocks.5.mlp")(x), expected)


def test_a_bottleneck_on_a_cnn_acts_on_channels(make_model, moved):
    model = make_model(model__backbone="timm:test_resnet", pet__method="adapter", pet__scope="last-1")
    model.load(moved(model))
    bottleneck = model.net.get_submodule(f"{model.arch.blocks[-1]}.bottleneck")
    maps = torch.randn(2, 96, 3, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = bottleneck(maps)
        torch.testing.assert_close(out[1, :, 2, 1], bottleneck(maps[1, :, 2, 1][None])[0])
