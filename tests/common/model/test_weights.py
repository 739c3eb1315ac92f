"""Weights come from a safetensors file, a timm or a transformers folder, and fit exactly or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification, ViTModel

from common.errors import WeightsError
from common.model.weights import load_weights


@pytest.fixture
def source():
    """A network somebody trained, with a head of another size."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return timm.create_model("test_vit", img_size=32, num_classes=9).eval()


@pytest.fixture
def saved(source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    return path


def base_of(model, source):
    """Whether every tensor but the head is the source's."""
    own = model.net.state_dict()
    return all(torch.equal(own[n], t) for n, t in source.state_dict().items() if not n.startswith("head."))


def test_a_file(make_model, source, saved):
    model = make_model(model__weights=str(saved), pet__method="head")
    assert base_of(model, source)
    other_seed = make_model(model__weights=str(saved), pet__method="head", seed=5)
    assert model.base_digest == other_seed.base_digest
    assert model.base_digest != make_model(pet__method="head").base_digest


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.safetensors"])
def test_a_folder_in_timm_layout(make_model, source, tmp_path, name):
    save_file(source.state_dict(), tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 9}))
    assert base_of(make_model(model__weights=str(tmp_path), pet__method="head"), source)


def test_half_precision_weights_are_read_in_full(make_model, source, tmp_path):
    halves = {n: t.half() for n, t in source.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    model = make_model(model__weights=str(tmp_path / "half.safetensors"), pet__method="head")
    assert all(t.dtype == torch.float32 for t in model.net.state_dict().values())
    assert torch.equal(model.net.patch_embed.proj.weight, halves["patch_embed.proj.weight"].float())


def test_the_home_folder_is_understood(make_model, source, saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert base_of(make_model(model__weights=f"~/{saved.name}", pet__method="head"), source)


def test_positions_are_resampled_to_the_image_s_grid(make_model, source, saved):
    model = make_model(model__weights=str(saved), data__image_size=64, pet__method="head")
    wanted = resample_abs_pos_embed(source.pos_embed.detach(), new_size=[4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.net.pos_embed.detach(), wanted, atol=0, rtol=0)


def test_a_mean_pooled_network_takes_weights_saved_with_a_class_token(make_model, source, saved):
    """timm moves the last norm behind the pooling and calls it fc_norm; the file says norm."""
    model = make_model(model__weights=str(saved), model__pool="avg", pet__method="head")
    assert torch.equal(model.net.fc_norm.weight, source.norm.weight)


# ---------------------------------------------------------------------- transformers

SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_channels": 3,
    "image_size": 32,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}


def shake(model):
    """Give every parameter its own value: fresh biases are all zero and would hide a swap."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
def test_a_transformers_vit_gives_the_same_features(make_model, tmp_path, kind):
    config = ViTConfig(**SMALL, num_hidden_layers=6, intermediate_size=192)
    theirs = shake(kind(config))
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    net = make_model(model__weights=str(tmp_path), pet__method="head").net
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = getattr(theirs, "vit", theirs)(pixel_values=x).last_hidden_state
        torch.testing.assert_close(net.forward_features(x), hidden, atol=1e-4, rtol=1e-4)


def test_a_transformers_dinov2_gives_the_same_features(tmp_path):
    config = Dinov2Config(**SMALL, num_hidden_layers=2, mlp_ratio=3)
    theirs = shake(Dinov2Model(config))
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    net = VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=64,
        depth=2,
        num_heads=2,
        mlp_ratio=3,
        init_values=1.0,
        num_classes=2,
    ).eval()
    load_weights(net, tmp_path, "head")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = theirs(pixel_values=x).last_hidden_state
        torch.testing.assert_close(net.forward_features(x), hidden, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- what does not fit


def test_another_architecture_s_weights_name_what_is_missing(make_model, saved):
    with pytest.raises(WeightsError) as caught:
        make_model(model__backbone="timm:test_resnet", model__weights=str(saved))
    assert "tensors the architecture needs are not in the file" in caught.value.problem
    assert "missing bn1.bias" in caught.value.found
    assert "model.backbone" in caught.value.fix


def test_a_deeper_network_s_weights_name_what_is_left_over(make_model, source, tmp_path):
    tensors = dict(source.state_dict())
    tensors["blocks.6.norm1.weight"] = torch.ones(64)
    save_file(tensors, tmp_path / "deeper.safetensors")
    with pytest.raises(WeightsError, match="1 tensors do not belong") as caught:
        make_model(model__weights=str(tmp_path / "deeper.safetensors"))
    assert "blocks.6.norm1.weight" in caught.value.found


def test_a_wider_layer_is_named_with_both_shapes(make_model, source, tmp_path):
    tensors = dict(source.state_dict())
    tensors["blocks.0.mlp.fc1.bias"] = torch.zeros(256)
    save_file(tensors, tmp_path / "wider.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.0\.mlp\.fc1\.bias") as caught:
        make_model(model__weights=str(tmp_path / "wider.safetensors"))
    assert caught.value.found == "(256,), expected (192,)"


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ""])
def test_pickles_are_refused_unread(make_model, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"w": Trap()}, path)
    with pytest.raises(WeightsError, match="only safetensors"):
        make_model(model__weights=str(path))
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_in_safetensors_clothing_is_refused(make_model, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        make_model(model__weights=str(tmp_path / "weights.safetensors"))


def test_a_missing_file_is_named(make_model, tmp_path):
    with pytest.raises(WeightsError, match="absent"):
        make_model(model__weights=str(tmp_path / "absent.safetensors"))


def test_a_folder_without_weights_says_what_it_holds(make_model, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="holds no weights") as caught:
        make_model(model__weights=str(tmp_path))
    assert "pytorch_model.bin" in caught.value.found


@pytest.mark.parametrize("keep", [0.5, 0.99, 0.001])
def test_a_truncated_file_is_refused(make_model, saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        make_model(model__weights=str(saved))


def test_a_broken_config_is_refused(make_model, source, tmp_path):
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        make_model(model__weights=str(tmp_path))


# ---------------------------------------------------------------------- real weights


@pytest.fixture(scope="module")
def weights() -> Path:
    data = os.environ.get("FEDCXR_DATA") or Path(__file__).parents[4] / "shared" / "data"
    folder = Path(data) / "weights"
    if not (folder / "vit_small_patch14_dinov2.safetensors").is_file():
        pytest.skip(f"no pretrained weights in {folder}; set FEDCXR_DATA")
    return folder


@pytest.mark.real_data
def test_published_dinov2_weights_fit_at_another_size(make_model, logits, weights):
    file = weights / "vit_small_patch14_dinov2.safetensors"
    model = make_model(
        model__backbone="timm:vit_small_patch14_dinov2",
        model__weights=str(file),
        data__image_size=112,
        pet__scope="last-2",
    )
    assert model.net.pos_embed.shape == (1, 8 * 8 + 1, 384)
    published = load_file(file)
    name = "blocks.7.mlp.fc1.weight"
    assert torch.equal(model.net.state_dict()[name], published[name].float())
    assert logits(model).isfinite().all()


@pytest.mark.real_data
def test_published_efficientnet_weights_fit(make_model, logits, weights):
    file = weights / "tf_efficientnet_lite0.safetensors"
    model = make_model(
        model__backbone="timm:tf_efficientnet_lite0",
        model__weights=str(file),
        data__image_size=64,
        pet__scope="last-2",
    )
    published = load_file(file)
    assert torch.equal(model.net.bn2.running_mean, published["bn2.running_mean"].float())
    assert logits(model).isfinite().all()
