"""The tower as a model uses it: targets that exist, missing texts that harm nothing, its own weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn

from common.config import RunConfig
from common.errors import ModelError, WeightsError
from common.model.digest import tensor_digest
from common.model.text import embedded
from common.model.text.embedded import build_embedded, embedded_text_file
from common.model.text.encoder import TextTower, load_text_tower
from common.model.text.zoo import TEXT_ENCODERS

Folder = Callable[..., Path]
Config = Callable[..., RunConfig]

FAMILIES = ("embedded", "bert", "distilbert", "bio-clinicalbert", "cxr-bert")


@pytest.fixture
def tower(request: pytest.FixtureRequest, make_folder: Folder, text_config: Config) -> TextTower:
    name = request.param
    if name == "embedded":
        return load_text_tower(text_config())
    return load_text_tower(text_config(name, make_folder(TEXT_ENCODERS[name].family)))


def features(tower: TextTower, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = tower.tokenize(texts, 24)
    mask = torch.from_numpy(tokens.mask)
    hidden = tower.hidden(torch.from_numpy(tokens.ids), mask)
    return hidden, tower.pooled(hidden, mask), mask


@pytest.mark.parametrize("tower", FAMILIES, indirect=True)
def test_every_target_is_a_linear_layer_of_every_block(tower: TextTower) -> None:
    assert list(tower.targets) == ["q", "k", "v", "proj", "fc1", "fc2"]
    linear = {name for name, module in tower.net.named_modules() if isinstance(module, nn.Linear)}
    named = {f"{block}.{path}" for block in tower.blocks for path in tower.targets.values()}
    assert named == linear
    for block in tower.blocks:
        shapes = {
            name: tuple(tower.net.get_submodule(f"{block}.{path}").weight.shape)
            for name, path in tower.targets.items()
        }
        inner = shapes["fc1"][0]
        square = (tower.width, tower.width)
        assert shapes == {
            **dict.fromkeys(("q", "k", "v", "proj"), square),
            "fc1": (inner, tower.width),
            "fc2": (tower.width, inner),
        }


@pytest.mark.parametrize("tower", ["embedded", "distilbert"], indirect=True)
def test_peft_adapts_the_targets(tower: TextTower) -> None:
    tower.requires_grad_(False)
    paths = [f"{tower.blocks[-1]}.{tower.targets[name]}" for name in ("q", "v")]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=paths), tower.net)
    trained = [name for name, p in tower.net.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    _, pooled, _ = features(tower, ["effusion", "no effusion"])
    pooled.square().sum().backward()
    grads = [p.grad for name, p in tower.net.named_parameters() if "lora_B" in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("tower", FAMILIES, indirect=True)
def test_a_missing_text_is_finite_and_its_features_are_zero(tower: TextTower) -> None:
    hidden, pooled, mask = features(tower, ["no effusion", "", "effusion"])
    assert mask.any(dim=1).tolist() == [True, False, True]
    assert hidden.isfinite().all()
    assert (pooled[1] == 0).all()
    assert (pooled[0] != 0).any()
    pooled.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tower.parameters())
    none, pooled, _ = features(tower, ["", " "])
    assert none.isfinite().all()
    assert (pooled == 0).all()


@pytest.mark.parametrize("tower", FAMILIES, indirect=True)
def test_what_a_text_says_does_not_depend_on_its_neighbours(tower: TextTower) -> None:
    _, alone, _ = features(tower, ["no effusion"])
    _, beside, _ = features(tower, ["", "there is a large effusion with edema, line", "no effusion"])
    torch.testing.assert_close(beside[2], alone[0], atol=1e-5, rtol=1e-5)
    _, other, _ = features(tower, ["effusion"])
    assert (other[0] - alone[0]).abs().max() > 1e-3


def test_every_encoder_of_the_zoo_has_a_family_that_is_built(
    make_folder: Folder, text_config: Config
) -> None:
    folders = {family: make_folder(family) for family in ("bert", "distilbert")}
    for name, encoder in TEXT_ENCODERS.items():
        assert re.fullmatch(r"[\w-]+/[\w.-]+", encoder.source)
        assert load_text_tower(text_config(name, folders[encoder.family])).family == encoder.family


def test_an_unknown_encoder_is_told_with_the_nearest(text_config: Config) -> None:
    with pytest.raises(ModelError, match="no text encoder 'distillbert'") as caught:
        load_text_tower(text_config("distillbert"))
    assert "did you mean 'distilbert'?" in caught.value.fix
    assert "embedded" in caught.value.fix


def test_a_plan_cannot_read_more_tokens_than_there_are_positions(
    make_folder: Folder, text_config: Config
) -> None:
    with pytest.raises(ModelError, match="reads at most 32 tokens") as caught:
        load_text_tower(text_config("bert", make_folder(), length=33))
    assert caught.value.fix == "set data.text_length = 32 or less"
    assert load_text_tower(text_config("bert", make_folder(), length=32))
    assert load_text_tower(text_config(length=512))


# ---------------------------------------------------------------------- our own


def test_the_embedded_weights_are_small_and_are_what_is_loaded(text_config: Config) -> None:
    file = embedded_text_file()
    assert file.stat().st_size < 5_000_000
    assert file.with_suffix(".md").is_file()
    stored = {name: tensor.float() for name, tensor in load_file(file).items()}
    tower = load_text_tower(text_config())
    assert tensor_digest(stored) == tensor_digest(tower.net.state_dict())
    assert sum(t.numel() for t in stored.values()) == 1_908_096
    assert tower.width == 128
    assert len(tower.blocks) == 4


def test_weights_of_ones_own_for_the_embedded_architecture(text_config: Config, tmp_path: Path) -> None:
    net = build_embedded(3)
    assert tensor_digest(net.state_dict()) == tensor_digest(build_embedded(3).state_dict())
    assert tensor_digest(net.state_dict()) != tensor_digest(build_embedded(4).state_dict())
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    tower = load_text_tower(text_config(weights=tmp_path / "own.safetensors"))
    assert tensor_digest(tower.net.state_dict()) == tensor_digest(net.state_dict())


def test_weights_that_are_not_its_own_are_refused(text_config: Config, tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> WeightsError:
        with pytest.raises(WeightsError, match=words) as caught:
            load_text_tower(text_config(weights=path))
        return caught.value

    assert "model.text_encoder" in refused(tmp_path, "a folder, and the embedded").fix
    refused(tmp_path / "absent.safetensors", "no such weights file")
    (tmp_path / "weights.bin").write_bytes(b"x")
    refused(tmp_path / "weights.bin", "only safetensors")
    (tmp_path / "cut.safetensors").write_bytes(embedded_text_file().read_bytes()[:-100])
    refused(tmp_path / "cut.safetensors", "not a readable safetensors file")
    state = build_embedded(0).state_dict()
    state["encoder.layer.0.output.dense.bias"] = torch.zeros(4)
    save_file(state, tmp_path / "odd.safetensors")
    error = refused(tmp_path / "odd.safetensors", "not the weights of the embedded text encoder")
    assert error.found.endswith("such as encoder.layer.0.output.dense.bias")


def test_a_bundle_without_weights_finds_those_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path
) -> None:
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "common" / "model" / "text" / "embedded.py"))
    monkeypatch.syspath_prepend(str(repository))
    assert embedded_text_file() == repository / "common" / "model" / "embedded" / embedded.FILE
