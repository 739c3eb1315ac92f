"""A release of a model that reads reports works without our model: timm, transformers, peft, the card."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
import timm
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional

from common.adapter import AdapterState, Factors
from common.errors import ConfigError
from common.model.base import load_base
from common.model.fusion import TextInput
from common.model.text.embedded import load_embedded
from server.merge import merged_tensors, merged_text_tensors, write_merged
from server.release import write_release

PLAN = "f" * 64
REPORTS = ["Dyspnea and fever.", "", "Fall from a ladder, chest pain."]
# transformers warns at a name that peft asks for
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture
def make(make_model):
    def with_text(**over):
        return make_model(data__text=True, **over)

    return with_text


def trained(model, layers=(), seed=0):
    """The adapter after some training, with a residual on some layers."""
    generator = torch.Generator().manual_seed(seed)
    start = model.initial_state().tensors
    tensors = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in start.items()}
    residual = {}
    for layer in layers:
        net = model.text.net if layer.startswith("text.") else model.net
        out, into = net.get_submodule(layer.removeprefix("text.")).base_layer.weight.shape
        left = 0.1 * torch.randn(out, 2, generator=generator)
        residual[layer] = Factors(left, 0.1 * torch.randn(2, into, generator=generator))
    return AdapterState(tensors, residual)


def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ours(model, state):
    model.load(state)
    model.train_mode(False)
    tokens = model.text.tokenize(REPORTS, 64)
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    with torch.no_grad():
        return model.forward(images(), None, TextInput(model.read_text(ids, mask), mask))


def plain(model):
    """The timm network and the transformers encoder as anybody has them."""
    net = timm.create_model("test_vit", img_size=32, num_classes=len(model.findings))
    weights = load_base(model.config)[0].state_dict()
    net.load_state_dict({n: t for n, t in weights.items() if not n.startswith("head.")}, strict=False)
    text, tokenize = load_embedded("", 0)
    return net.eval(), text.eval(), tokenize


def by_the_card(folder, fusion, net, text, tokenize):
    """Compute the logits from a release's files alone, in the words of its card."""
    w = load_file(folder / "fusion.safetensors")
    tokens = tokenize(REPORTS, 64)
    ids, mask = torch.from_numpy(tokens.ids).long(), torch.from_numpy(tokens.mask)
    said = []
    with torch.no_grad():
        x = net.forward_head(net.forward_features(images()), pre_logits=True)
        head = net.get_classifier()
        for i in range(len(REPORTS)):
            seen = mask[i : i + 1]
            stand_in = w["fusion.missing_text"]
            if seen.any():
                hidden = text(input_ids=ids[i : i + 1], attention_mask=seen.long()).last_hidden_state[0]
                hidden = hidden[seen[0]]
            else:
                hidden = stand_in[None]
            t = hidden.mean(dim=0)
            if fusion == "concatenate":
                said.append(head(x[i]) + w["fusion.text_head.weight"] @ t)
            elif fusion == "gated":
                z = torch.sigmoid(w["fusion.gate.weight"] @ torch.cat([x[i], t]))
                v, r = torch.tanh(w["fusion.image.weight"] @ x[i]), torch.tanh(w["fusion.text.weight"] @ t)
                said.append(head(z * v + (1 - z) * r))
            else:
                named = {
                    part: (w[f"fusion.{part}.weight"], w[f"fusion.{part}.bias"])
                    for part in ("query", "key", "value", "out")
                }
                q = functional.linear(x[i], *named["query"]).reshape(4, 16)
                k, v = (
                    functional.linear(hidden, *named[part]).reshape(-1, 4, 16) for part in ("key", "value")
                )
                share = torch.softmax(torch.einsum("hw,lhw->hl", q, k) / math.sqrt(16), dim=1)
                heard = torch.einsum("hl,lhw->hw", share, v).reshape(-1)
                said.append(head(x[i] + functional.linear(heard, *named["out"])))
    return torch.stack(said)


CASES = {
    "lora": {"lora__alpha": 3.0},
    "the last block of each": {"pet__scope": "last-1", "pet__targets": "q, v, fc2"},
    "ia3": {"pet__method": "ia3"},
    "vera": {"pet__method": "vera"},
    "gated": {"model__fusion": "gated"},
    "cross-attention": {"model__fusion": "cross-attention"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_both_adapters_open_in_peft_and_give_our_logits(make, tmp_path, settings):
    model = make(**settings)
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    net, text, tokenize = plain(model)
    opened = PeftModel.from_pretrained(net, str(tmp_path)).eval().base_model.model
    read = PeftModel.from_pretrained(text, str(tmp_path / "text")).eval()
    theirs = by_the_card(tmp_path, model.config.model.fusion, opened, read, tokenize)
    torch.testing.assert_close(theirs, ours(model, state), atol=1e-5, rtol=1e-4)


def test_a_residual_goes_to_the_tower_it_belongs_to(make, tmp_path):
    model = make(lora__aggregation="fedex")
    layers = [
        "blocks.3.mlp.fc1",
        "text.encoder.layer.0.attention.self.key",
        "text.encoder.layer.3.output.dense",
    ]
    state = trained(model, layers)
    write_release(model, state, tmp_path, PLAN)
    net, text, tokenize = plain(model)
    opened = PeftModel.from_pretrained(net, str(tmp_path)).eval().base_model.model
    read = PeftModel.from_pretrained(text, str(tmp_path / "text")).eval()
    wanted = ours(model, state)
    torch.testing.assert_close(
        by_the_card(tmp_path, "concatenate", opened, read, tokenize), wanted, atol=1e-5, rtol=1e-4
    )
    assert not torch.allclose(ours(model, AdapterState(state.tensors, {})), wanted, atol=1e-3)


@pytest.mark.parametrize("method", ["bitfit", "norm", "full"])
def test_the_other_methods_load_into_the_plain_networks(make, tmp_path, method):
    model = make(pet__method=method)
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    net, text, tokenize = plain(model)
    for target, folder in ((net, tmp_path), (text, tmp_path / "text")):
        tensors = load_file(folder / "adapter_model.safetensors")
        assert tensors and not target.load_state_dict(tensors, strict=False).unexpected_keys
    theirs = by_the_card(tmp_path, "concatenate", net, text, tokenize)
    torch.testing.assert_close(theirs, ours(model, state), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("towers", ["vision", "text"])
def test_a_tower_without_pet_is_plain(make, tmp_path, towers):
    model = make(pet__towers=towers)
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    net, text, tokenize = plain(model)
    if towers == "vision":
        assert not (tmp_path / "text").exists()
        net = PeftModel.from_pretrained(net, str(tmp_path)).eval().base_model.model
    else:
        assert set(load_file(tmp_path / "adapter_model.safetensors")) == {"head.weight", "head.bias"}
        net.load_state_dict(load_file(tmp_path / "adapter_model.safetensors"), strict=False)
        text = PeftModel.from_pretrained(text, str(tmp_path / "text")).eval()
    theirs = by_the_card(tmp_path, "concatenate", net, text, tokenize)
    torch.testing.assert_close(theirs, ours(model, state), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"pet__towers": "text"}, {"pet__method": "bitfit"}], ids=str)
def test_merged_networks_need_no_adapter(make, tmp_path, settings):
    model = make(**settings)
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    file = write_merged(model.config, model.base_digest, PLAN, tmp_path, tmp_path)
    net, text, tokenize = plain(model)
    net.load_state_dict(load_file(file))
    text.load_state_dict(load_file(tmp_path / "merged_text.safetensors"))
    theirs = by_the_card(tmp_path, "concatenate", net, text, tokenize)
    torch.testing.assert_close(theirs, ours(model, state), atol=1e-5, rtol=1e-4)


def test_a_text_encoder_that_nobody_adapted_is_not_merged(make, tmp_path):
    model = make(pet__towers="vision")
    write_release(model, trained(model), tmp_path, PLAN)
    assert merged_text_tensors(model.config, tmp_path) == {}
    write_merged(model.config, model.base_digest, PLAN, tmp_path, tmp_path)
    assert not (tmp_path / "merged_text.safetensors").exists()


def test_bottlenecks_are_not_merged(make, tmp_path):
    model = make(pet__method="adapter")
    write_release(model, trained(model), tmp_path, PLAN)
    for merge in (merged_tensors, merged_text_tensors):
        with pytest.raises(ConfigError, match="bottleneck"):
            merge(model.config, tmp_path)


def test_the_release_s_digest_covers_every_file_and_stands(make, tmp_path):
    model = make(model__fusion="cross-attention", data__clinical="age")
    state = trained(model)
    digests = {write_release(model, state, tmp_path / str(i), PLAN) for i in range(4)}
    assert len(digests) == 1
    folder = tmp_path / "0"
    for file in ("fusion.safetensors", "clinical.safetensors", "text/adapter_model.safetensors", "README.md"):
        assert len({(tmp_path / str(i) / file).read_bytes() for i in range(4)}) == 1, file
    with safe_open(folder / "adapter_model.safetensors", "pt") as opened:
        told = opened.metadata()
    assert told.keys() == {"plan", "fusion", "text"}
    for name, file in (("fusion", "fusion.safetensors"), ("text", "text/adapter_model.safetensors")):
        assert told[name] == hashlib.sha256((folder / file).read_bytes()).hexdigest()
    state.tensors["fusion.missing_text"][0] += 1.0
    assert write_release(model, state, tmp_path / "other", PLAN) not in digests


def test_the_card_says_what_is_read_and_how(make, tmp_path):
    model = make(data__redaction="word", data__text_length=40, pet__towers="vision")
    write_release(model, trained(model), tmp_path, PLAN)
    card = (tmp_path / "README.md").read_text()
    assert "`word`" in card and "40 tokens" in card and "as its authors left it" in card
    assert "fusion.text_head.weight t" in card and model.base_digest in card
    assert not (tmp_path / "fusion.json").exists()
    with safe_open(tmp_path / "fusion.safetensors", "pt") as opened:
        assert opened.metadata() == {
            "fusion": "concatenate",
            "plan": PLAN,
            "redaction": "word",
            "text-encoder": "embedded",
            "text-length": "40",
        }
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not any("text" in name for name in described["target_modules"])


def test_an_encoder_that_pretraining_moved_is_a_file_beside_its_adapter(make_model, tmp_path):
    """The adapter holds what was tuned, and belongs on that encoder."""
    model = make_model(pretrain__rounds=1, pretrain__parameters="encoder", pet__targets="q, v")
    state = trained(model)
    write_release(model, state, tmp_path, PLAN)
    net = timm.create_model("test_vit", img_size=32, num_classes=len(model.findings))
    net.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=False)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert described["modules_to_save"] == ["head"]
    opened = PeftModel.from_pretrained(net, str(tmp_path)).eval()
    model.load(state)
    model.train_mode(False)
    with torch.no_grad():
        torch.testing.assert_close(opened(images()), model.forward(images()), atol=1e-5, rtol=1e-4)
        merged = timm.create_model("test_vit", img_size=32, num_classes=len(model.findings)).eval()
        merged.load_state_dict(merged_tensors(model.config, tmp_path))
        torch.testing.assert_close(merged(images()), model.forward(images()), atol=1e-5, rtol=1e-4)
