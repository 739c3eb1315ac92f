"""The release opens without fedcxr: ``peft`` on a plain timm network gives the logits our model gives."""

from __future__ import annotations

import hashlib
import json

import pytest

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
import timm
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from common.adapter import AdapterState, Factors
from common.model.base import embedded_architecture
from server.release import write_release

PLAN = "f" * 64


def trained(model, seed=0):
    """The adapter after some training: every value moved."""
    generator = torch.Generator().manual_seed(seed)
    start = model.initial_state().tensors
    return AdapterState(
        {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in start.items()}, {}
    )


def with_residual(model, state, layers, rank=2):
    """fedex: a residual on some layers, of another rank than the adapter's."""
    generator = torch.Generator().manual_seed(9)
    residual = {}
    for layer in layers:
        weight = model.net.get_submodule(layer).base_layer.weight
        out, inside = len(weight), weight[0].numel()
        left = 0.1 * torch.randn(out, rank, generator=generator)
        residual[layer] = Factors(left, 0.1 * torch.randn(rank, inside, generator=generator))
    return AdapterState(state.tensors, residual)


def plain(make_model, model):
    """The timm network as anybody makes it, with the base's weights and an untrained head."""
    config = model.config
    name, kwargs = config.model.backbone.removeprefix("timm:"), {"num_classes": len(model.findings)}
    if name == "embedded":
        kwargs |= embedded_architecture()
        name = kwargs.pop("model_name")
    if model.arch.family == "vit":
        kwargs["img_size"] = config.data.image_size
    if config.model.pool != "auto":
        kwargs["global_pool"] = config.model.pool
    net = timm.create_model(name, **kwargs)
    bare = make_model(
        model__backbone=config.model.backbone,
        model__pool=config.model.pool,
        data__image_size=config.data.image_size,
        pet__method="head",
    )
    head = net.pretrained_cfg["classifier"]
    weights = {n: t for n, t in bare.net.state_dict().items() if not n.startswith(f"{head}.")}
    net.load_state_dict(weights, strict=False)
    return net.eval()


def said(run, model):
    size = model.config.data.image_size
    x = torch.randn(2, model.channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return run(x)


def opened_by_peft(make_model, model, state, folder):
    """Return our logits and those of the release opened by ``peft``."""
    write_release(model, state, folder, PLAN)
    model.load(state)
    ours = said(model.forward, model)
    theirs = PeftModel.from_pretrained(plain(make_model, model), str(folder)).eval()
    return ours, said(theirs, model)


LORA = {
    "every layer": {},
    "alpha over r": {"lora__alpha": 3.0, "pet__rank": 5},
    "parts of qkv": {"pet__targets": "q, v"},
    "keys alone, and the MLP": {"pet__targets": "k, fc1"},
    "the last blocks": {"pet__scope": "last-2"},
    "one part in one block": {"pet__targets": "v", "pet__scope": "last-1"},
    "the norm too": {"pet__final_norm": True, "pet__targets": "q, v"},
    "mean pooling and its norm": {"model__pool": "avg", "pet__final_norm": True},
    "dropout": {"lora__dropout": 0.3},
    "the embedded backbone": {"model__backbone": "embedded", "data__image_size": 96},
    "resnet": {"model__backbone": "timm:resnet18", "data__image_size": 64},
    "resnet, last blocks": {"model__backbone": "timm:test_resnet", "pet__scope": "last-2"},
    "densenet and its norm": {
        "model__backbone": "timm:densenet121",
        "pet__scope": "last-1",
        "pet__final_norm": True,
    },
    "efficientnet": {"model__backbone": "timm:test_efficientnet", "pet__final_norm": True},
    "convnext": {"model__backbone": "timm:test_convnext", "pet__final_norm": True},
}


@pytest.mark.parametrize("settings", LORA.values(), ids=LORA.keys())
def test_lora_opens_in_peft(make_model, tmp_path, settings):
    model = make_model(**settings)
    ours, theirs = opened_by_peft(make_model, model, trained(model), tmp_path)
    scale = ours.abs().max()
    torch.testing.assert_close(theirs / scale, ours / scale, atol=1e-5, rtol=1e-5)


RESIDUALS = {
    "some layers": ({}, ["blocks.0.attn.qkv", "blocks.3.mlp.fc1", "blocks.5.mlp.fc2"]),
    "one digit and two": (
        {"model__backbone": "timm:vit_tiny_patch16_224"},
        ["blocks.1.mlp.fc1", "blocks.10.attn.proj"],
    ),
    "parts": (
        {"pet__targets": "q, v"},
        ["blocks.0.attn.qkv.q", "blocks.1.attn.qkv.v", "blocks.1.attn.qkv.q"],
    ),
    "convolutions": (
        {"model__backbone": "timm:resnet18"},
        ["layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2"],
    ),
}


@pytest.mark.parametrize(("settings", "layers"), RESIDUALS.values(), ids=RESIDUALS.keys())
def test_lora_with_a_residual_opens_in_peft(make_model, tmp_path, settings, layers):
    model = make_model(lora__aggregation="fedex", **settings)
    state = with_residual(model, trained(model), layers)
    ours, theirs = opened_by_peft(make_model, model, state, tmp_path)
    scale = ours.abs().max()
    torch.testing.assert_close(theirs / scale, ours / scale, atol=1e-5, rtol=1e-5)
    model.load(AdapterState(state.tensors, {}))
    assert not torch.allclose(said(model.forward, model), ours, atol=1e-4 * float(scale))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pet__scope": "last-2"},
        {"pet__final_norm": True},
        {"pet__targets": "v, fc2"},
        {"pet__targets": "fc1, proj"},
    ],
    ids=str,
)
def test_ia3_opens_in_peft(make_model, tmp_path, settings):
    model = make_model(pet__method="ia3", **settings)
    ours, theirs = opened_by_peft(make_model, model, trained(model), tmp_path)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pet__scope": "last-2"},
        {"pet__final_norm": True, "seed": 4},
        {"pet__targets": "qkv"},
        {"pet__targets": "q, v"},
    ],
    ids=str,
)
def test_vera_opens_in_peft(make_model, tmp_path, settings):
    settings = dict(settings)
    model = make_model(pet__method="vera", **settings)

    def same_seed(**over):
        return make_model(**over, **({"seed": settings["seed"]} if "seed" in settings else {}))

    ours, theirs = opened_by_peft(same_seed, model, trained(model), tmp_path)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_vera_s_shared_matrices_come_from_the_file(make_model, tmp_path):
    """Not from a generator that another version may run otherwise."""
    model = make_model(pet__method="vera")
    ours, _ = opened_by_peft(make_model, model, trained(model), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"projection_prng_key": 999}))
    theirs = PeftModel.from_pretrained(plain(make_model, model), str(tmp_path)).eval()
    torch.testing.assert_close(said(theirs, model), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["head", "bitfit", "norm", "full"])
@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_the_other_methods_load_into_the_plain_network(make_model, tmp_path, method, backbone):
    model = make_model(model__backbone=f"timm:{backbone}", pet__method=method)
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    model.load(state)
    net = plain(make_model, model)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    _, unexpected = net.load_state_dict(tensors, strict=False)
    assert not unexpected and tensors
    torch.testing.assert_close(said(net, model), said(model.forward, model), atol=1e-5, rtol=1e-5)


def test_a_bottleneck_loads_into_our_own_model(make_model, tmp_path):
    model = make_model(pet__method="adapter")
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    again = make_model(pet__method="adapter")
    again.load(AdapterState.from_bytes((tmp_path / "adapter_model.safetensors").read_bytes()))
    assert again.state().digest() == state.digest()


@pytest.mark.parametrize("method", ["head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full"])
def test_card_hash_and_metadata(make_model, tmp_path, method):
    model = make_model(pet__method=method)
    state = trained(model)
    digest = write_release(model, state, tmp_path, PLAN)
    file = tmp_path / "adapter_model.safetensors"
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"plan": PLAN}
    card = (tmp_path / "README.md").read_text()
    assert model.base_digest in card and PLAN in card
    assert "Not a medical device" in card
    positions = [card.index(f"{i}. {name}") for i, name in enumerate(model.findings)]
    assert positions == sorted(positions)
    config = tmp_path / (
        "adapter_config.json" if method in ("lora", "vera", "ia3") else "fedcxr_adapter.json"
    )
    assert json.loads(config.read_text())
    assert {p.name for p in tmp_path.iterdir()} == {file.name, "README.md", config.name}


def test_no_base_tensor_is_released(make_model, tmp_path):
    """What was not trained stays where it is: names, and no value equal to a base weight's."""
    model = make_model()
    write_release(model, trained(model), tmp_path, PLAN)
    released = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".lora_" in name or ".head." in name for name in released)
    assert sum(t.numel() for t in released.values()) == model.schema.numel


def test_writing_twice_gives_the_same_bytes(make_model, tmp_path):
    model = make_model()
    first = write_release(model, trained(model), tmp_path / "a", PLAN)
    again = write_release(make_model(), trained(model), tmp_path / "b", PLAN)
    assert first == again
    for name in ("adapter_config.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_clinical_weights_lie_beside_the_adapter(make_model, tmp_path, method) -> None:
    model = make_model(pet__method=method, data__clinical="age, crp")
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    beside = load_file(tmp_path / "clinical.safetensors")
    torch.testing.assert_close(beside["clinical.weight"], state.tensors["clinical.weight"])
    with safe_open(tmp_path / "clinical.safetensors", framework="pt") as file:
        assert file.metadata()["variables"] == "age, crp"
    assert "clinical" not in str(list(load_file(tmp_path / "adapter_model.safetensors")))
    assert "age, crp" in (tmp_path / "README.md").read_text()
    if method == "lora":
        opened = PeftModel.from_pretrained(plain(make_model, model), tmp_path)
        model.load(state)
        z = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
        image = said(opened, model)
        ours = said(lambda x: model.forward(x, z), model)
        torch.testing.assert_close(image + z @ beside["clinical.weight"].T, ours, atol=1e-5, rtol=1e-5)
