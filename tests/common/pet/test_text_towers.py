"""PET in the text tower: the layers it means, against ``peft`` around the plain transformers encoder."""

from __future__ import annotations

import json

import pytest
import torch

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before transformers)
import transformers
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model

from common.errors import ModelError, TargetError
from common.model.build import build_model
from common.model.text.encoder import load_text_tower
from common.pet.towers import TEXT, tower_seed

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "chest", "pain", "cough", "for", "days"]
LAYERS = {
    "bert": r"encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|(attention\.)?output\.dense"
    r"|intermediate\.dense)",
    "distilbert": r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])",
}
SCALED = {
    "bert": r".*(attention\.self\.(key|value)|layer\.\d+\.output\.dense)",
    "distilbert": r".*(attention\.(k|v)_lin|ffn\.lin2)",
}
INNER = {"bert": r".*layer\.\d+\.output\.dense", "distilbert": r".*ffn\.lin2"}
# transformers warns at a name that peft asks for
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small random encoder of each family, as its authors would publish it."""
    found = {}
    for family in ("bert", "distilbert"):
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        if family == "bert":
            sizes = {
                "hidden_size": 24,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "intermediate_size": 40,
            }
            described = transformers.BertConfig(vocab_size=len(WORDS), **sizes)
            net = transformers.BertModel(described)
        else:
            sizes = {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40}
            net = transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=len(WORDS), **sizes))
        net.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
        )
        found[family] = folder
    return found


@pytest.fixture
def make(make_model, folders):
    def with_text(family="bert", **over):
        folder = str(folders[family])
        over = {"pet__towers": "text"} | over
        return make_model(data__text=True, model__text_encoder=family, model__text_weights=folder, **over)

    return with_text


def adapted(model, mark=".lora_A."):
    return {name.partition(mark)[0] for name in model.schema.names if mark in name}


def tokens(model):
    found = model.text.tokenize(["chest pain", "cough for days"], 8)
    return torch.from_numpy(found.ids), torch.from_numpy(found.mask)


def hidden_of_both(model, state, theirs):
    """Our hidden states, and those of a network ``peft`` has wrapped, with our adapter copied in."""
    live = dict(theirs.base_model.model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.tensors.items():
            if name.startswith("text."):
                stem, leaf = name.removeprefix("text."), ""
                if stem.endswith(".weight"):
                    stem, leaf = stem.removesuffix(".weight"), ".weight"
                live[f"{stem}.default{leaf}"].copy_(tensor)
        model.load(state)
        model.train_mode(False)
        ids, mask = tokens(model)
        ours = model.text.hidden(ids, mask)
        return ours, theirs.eval()(input_ids=ids.long(), attention_mask=mask.long()).last_hidden_state


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_lora_is_peft_s(make, moved, family):
    model = make(family, pet__rank=3, lora__alpha=5.0)
    plain = load_text_tower(model.config).net
    described = LoraConfig(r=3, lora_alpha=5.0, target_modules=LAYERS[family])
    ours, theirs = hidden_of_both(model, moved(model), get_peft_model(plain, described))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert len(adapted(model)) == 3 * 6


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_ia3_scales_keys_values_and_the_feed_forward_s_input(make, moved, family):
    model = make(family, pet__method="ia3")
    plain = load_text_tower(model.config).net
    described = IA3Config(target_modules=SCALED[family], feedforward_modules=INNER[family])
    ours, theirs = hidden_of_both(model, moved(model), get_peft_model(plain, described))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_vera_is_peft_s(make, moved, family):
    model = make(family, pet__method="vera", pet__rank=4)
    plain = load_text_tower(model.config).net
    key = tower_seed(model.config, TEXT)
    described = VeraConfig(r=4, target_modules=LAYERS[family], projection_prng_key=key)
    ours, theirs = hidden_of_both(model, moved(model), get_peft_model(plain, described))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_bottleneck_stands_behind_the_mlp_before_it_is_added(make, moved, family):
    model = make(family, pet__method="adapter", pet__bottleneck=5, pet__scope="last-1")
    state = moved(model)
    model.load(state)
    fc2 = {"bert": "encoder.layer.2.output.dense", "distilbert": "transformer.layer.2.ffn.lin2"}[family]
    assert adapted(model, ".bottleneck.") == {f"text.{fc2}"}
    layer = model.text.net.get_submodule(fc2)
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1))
    own = {n.rpartition("bottleneck.")[2]: t for n, t in state.tensors.items() if "bottleneck" in n}
    with torch.no_grad():
        h = torch.nn.functional.linear(x, layer.weight, layer.bias)
        inner = torch.nn.functional.gelu(h @ own["down.weight"].T + own["down.bias"])
        torch.testing.assert_close(layer(x), h + inner @ own["up.weight"].T + own["up.bias"])


@pytest.mark.parametrize("method", ["bitfit", "norm", "full"])
def test_what_is_unfrozen_lies_in_the_last_blocks(make, method):
    model = make(pet__method=method, pet__scope="last-2")
    names = [n for n in model.schema.names if n.startswith("text.")]
    assert names and all(n.startswith(("text.encoder.layer.1.", "text.encoder.layer.2.")) for n in names)
    if method == "bitfit":
        assert all(n.endswith(".bias") for n in names)
    if method == "norm":
        assert all(".LayerNorm." in n for n in names)


def test_scope_counts_in_each_tower(make):
    layers = adapted(make(pet__towers="both", pet__scope="last-1", pet__targets="fc1"))
    assert layers == {"blocks.5.mlp.fc1", "text.encoder.layer.2.intermediate.dense"}


def test_more_blocks_than_the_text_encoder_has_is_refused_by_its_name(make):
    with pytest.raises(ModelError, match="text encoder") as caught:
        make(pet__scope="last-4")
    assert caught.value.found == "3 blocks" and "last-3" in caught.value.fix


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("fc2", {"text.encoder.layer.2.output.dense"}),  # and not attention.output.dense
        ("proj", {"text.encoder.layer.2.attention.output.dense"}),
        ("q, v", {f"text.encoder.layer.2.attention.self.{part}" for part in ("query", "value")}),
        ("qkv", {f"text.encoder.layer.2.attention.self.{part}" for part in ("query", "key", "value")}),
        ("key", {"text.encoder.layer.2.attention.self.key"}),
    ],
)
def test_targets_mean_the_same_layers_as_in_a_vit(make, targets, expected):
    assert adapted(make(pet__scope="last-1", pet__targets=targets)) == expected


def test_each_tower_takes_the_targets_it_has(make):
    model = make(
        pet__towers="both", pet__scope="last-1", pet__targets="conv, q", model__backbone="timm:test_resnet"
    )
    layers = adapted(model)
    text = {name for name in layers if name.startswith("text.")}
    assert text == {"text.encoder.layer.2.attention.self.query"}
    assert layers - text and all("conv" in name or "downsample" in name for name in layers - text)


def test_a_target_neither_tower_has_fails_by_name(make):
    with pytest.raises(TargetError, match="'nope'"):
        make(pet__towers="both", pet__targets="q, nope")
    with pytest.raises(TargetError, match="'nope'"):
        make(pet__targets="nope")


def test_a_tower_without_any_of_the_targets_fails_by_its_name(make):
    with pytest.raises(TargetError, match="vision encoder") as caught:
        make(pet__towers="both", pet__targets="query")
    assert caught.value.fix.endswith("pet.towers = 'text'")


def test_both_towers_draw_from_different_seeds(make, make_config):
    model = make(pet__towers="both")
    assert tower_seed(model.config, TEXT) != model.config.seed
    again = build_model(model.config)
    assert again.initial_state().digest() == model.initial_state().digest()
