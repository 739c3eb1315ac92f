"""The model of image and report: names, schema and digest of two towers, and what it computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.adapter import AdapterState, Factors
from common.clinical import scaled
from common.errors import ModelError, SchemaError
from common.model.build import build_model
from common.model.fusion import TextInput

METHODS = ["head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full"]
FUSIONS = ["concatenate", "gated", "cross-attention"]
REPORTS = ["Dyspnea and fever for three days.", "", "Fall from a ladder, chest pain on the left."]
D, T, F = 64, 128, 4
"""Width of the tiny ViT and of the embedded text encoder, and the findings."""


@pytest.fixture
def make(make_model):
    def with_text(**over):
        return make_model(data__text=True, **over)

    return with_text


def read(model, reports=REPORTS):
    tokens = model.text.tokenize(reports, model.config.data.text_length)
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    with torch.no_grad():
        return TextInput(model.read_text(ids, mask), mask)


def said(model, state=None, reports=REPORTS, clinical=None):
    if state is not None:
        model.load(state)
    model.train_mode(False)
    images = torch.randn(len(reports), model.channels, 32, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model.forward(images, clinical, read(model, reports))


@pytest.mark.parametrize("method", METHODS)
def test_image_tensors_keep_their_names_and_values(make, make_model, method):
    """So a report of an image model can be held against one with text, tensor by tensor."""
    both, image = make(pet__method=method), make_model(pet__method=method)
    own = {n: t for n, t in both.initial_state().tensors.items() if not n.startswith(("text.", "fusion."))}
    plain = image.initial_state().tensors
    assert list(own) == list(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(own[name], tensor, atol=0, rtol=0)
    assert both.base_digest != image.base_digest


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_loaded_comes_out_again(make, moved, method, fusion):
    model = make(pet__method=method, model__fusion=fusion)
    start = model.initial_state()
    state = moved(model)
    before, after = said(model, start), said(model, state)
    assert model.state().digest() == state.digest() != start.digest()
    assert model.current_base_digest() == model.base_digest
    assert after.isfinite().all() and not torch.allclose(before, after)
    assert model.schema.numel == sum(t.numel() for t in state.tensors.values())


def numel(fusion):
    """Counted by hand: stand-ins, and what joins."""
    joined = {
        "concatenate": F * T,
        "gated": D * D + T * D + (D + T) * D,
        "cross-attention": 64 * (D + T + T) + 3 * 64 + D * 64 + D,
    }
    return D + T + joined[fusion]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_schema_tells_the_truth_about_what_is_trained(make, make_model, fusion):
    model = make(pet__method="head", model__fusion=fusion)
    schema = model.schema
    assert schema.numel == make_model(pet__method="head").schema.numel + numel(fusion)
    assert set(schema.tuned or ()) == set(schema.names) == {*schema.head, *schema.fusion}
    rows = {"head.weight", "head.bias"} | ({"fusion.text_head.weight"} if fusion == "concatenate" else set())
    assert set(schema.head) == rows
    assert all(shape[0] == F for name, shape in schema.shapes if name in schema.head)
    assert {"fusion.missing_image", "fusion.missing_text"} <= set(schema.fusion)
    assert model.base_numel == make_model().base_numel + sum(p.numel() for p in model.text.net.parameters())


def test_lora_in_the_text_tower_is_counted_layer_by_layer(make, make_model):
    """Four blocks of 128: q, k, v, proj, fc1 (512) and fc2, each r (in + out)."""
    r = 4
    per_block = 4 * r * (128 + 128) + 2 * r * (128 + 512)
    model = make(pet__rank=r)
    assert model.schema.numel == make_model(pet__rank=r).schema.numel + 4 * per_block + numel("concatenate")


def test_either_tower_alone_can_be_adapted(make):
    marks = {"vision": "blocks.", "text": "text."}
    for towers, (other, mine) in {"vision": ("text", "vision"), "text": ("vision", "text")}.items():
        names = make(pet__towers=towers).schema.names
        assert any(n.startswith(marks[mine]) for n in names)
        assert not any(n.startswith(marks[other]) for n in names)


@pytest.mark.parametrize("fusion", ["concatenate", "cross-attention"])
def test_it_starts_as_the_image_model(make, make_model, fusion):
    model, image = make(model__fusion=fusion), make_model()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    image.train_mode(False)
    with torch.no_grad():
        torch.testing.assert_close(said(model), image.forward(images), atol=1e-6, rtol=1e-6)


def test_the_concatenated_head_is_one_linear_layer_over_image_text_and_clinical_variables(make, moved):
    model = make(data__clinical="age, crp")
    state = moved(model)
    values = np.array([[50, 3], [80, np.nan], [20, 100]], np.float32)
    clinical = torch.from_numpy(scaled(values, ["age", "crp"]))
    ours = said(model, state, clinical=clinical)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        text = read(model).read.clone()
        text[1] = state.tensors["fusion.missing_text"]
        features = torch.cat([model.image_features(images), text, clinical], dim=1)
        parts = ("head.weight", "fusion.text_head.weight", "clinical.weight")
        weight = torch.cat([state.tensors[name] for name in parts], dim=1)
        expected = functional.linear(features, weight, state.tensors["head.bias"])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_report_moves_only_its_own_study(make, moved):
    model = make(model__fusion="cross-attention")
    first = said(model, moved(model))
    other = said(model, reports=[REPORTS[0], "", "Cough."])
    changed = (first - other).abs().amax(dim=1)
    assert changed[2] > 1e-4 and not (changed[:2] > 1e-5).any()


def test_without_text_input_no_study_has_a_report(make, moved):
    model = make()
    expected = said(model, moved(model), reports=["", ""])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        torch.testing.assert_close(model.forward(images), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("towers", ["vision", "text", "both"])
def test_prefix_and_suffix_are_the_whole(make, moved, towers):
    model = make(pet__towers=towers, pet__scope="last-2")
    expected = said(model, moved(model))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    assert model.frozen_blocks == (6 if towers == "text" else 4)
    assert model.text_is_frozen == (towers == "vision")
    with torch.no_grad():
        hidden = model.prefix(images, model.frozen_blocks)
        cut = model.suffix(hidden, model.frozen_blocks, None, read(model))
    torch.testing.assert_close(cut, expected, atol=1e-6, rtol=1e-6)


def test_a_residual_of_a_text_layer_is_the_dense_one_in_its_weights(make, moved):
    """fedex in both towers: the residual finds its layer by the tower's name."""
    model, other = make(lora__aggregation="fedex"), make(lora__aggregation="fedex")
    start = moved(model, step=0.05)
    layers = {
        "text.encoder.layer.1.attention.self.query": (128, 128),
        "text.encoder.layer.3.output.dense": (128, 512),
    }
    layers["blocks.2.mlp.fc1"] = (192, 64)
    generator = torch.Generator().manual_seed(3)
    factors = {
        name: Factors(
            0.1 * torch.randn(out, 2, generator=generator), 0.1 * torch.randn(2, into, generator=generator)
        )
        for name, (out, into) in layers.items()
    }
    laid = said(model, AdapterState(start.tensors, factors))
    with torch.no_grad():
        for name, f in factors.items():
            tower = other.text.net if name.startswith("text.") else other.net
            tower.get_submodule(name.removeprefix("text.")).base_layer.weight += f.left @ f.right
    expected = said(other, start)
    torch.testing.assert_close(laid, expected, atol=1e-4, rtol=1e-4)
    bare = said(model, start)
    assert (laid - bare).abs().max() > 1e-3
    assert model.current_base_digest() == model.base_digest


def test_a_residual_that_fits_no_text_layer_is_refused(make):
    model = make()
    wrong = {"text.encoder.layer.9.output.dense": Factors(torch.zeros(128, 1), torch.zeros(1, 512))}
    with pytest.raises(SchemaError):
        model.load(AdapterState(model.initial_state().tensors, wrong))


def test_the_base_digest_covers_both_towers_and_the_tokenizer(make):
    model = make(pet__method="head")
    pinned = model.base_digest
    with torch.no_grad():
        weight = model.text.net.get_submodule("encoder.layer.0.output.dense").weight
        weight[0, 0] += 1.0
        assert model.current_base_digest() != pinned
        weight[0, 0] -= 1.0
    again = make(pet__method="head")
    assert again.base_digest == pinned
    numbered = again.text.tokenize

    def other_numbers(texts, length):
        tokens = numbered(texts, length)
        return replace(tokens, ids=tokens.ids + 1)

    again.text.tokenize = other_numbers
    assert again.current_base_digest() != pinned


def test_training_a_text_tensor_itself_keeps_the_base_s_digest(make, moved):
    for method in ("bitfit", "norm", "full"):
        model = make(pet__method=method)
        trained = [n for n in model.schema.names if n.startswith("text.")]
        assert set(trained) <= set(model.base_names)
        model.load(moved(model))
        assert model.current_base_digest() == model.base_digest


def test_an_encoder_that_pretraining_moves_is_the_image_s(make):
    model = make(pretrain__rounds=1, pretrain__parameters="encoder")
    assert model.schema.encoder and not any(n.startswith("text.") for n in model.schema.encoder)
    assert any(n.startswith("text.") for n in model.schema.tuned)
    model.load(AdapterState({n: t + 0.1 for n, t in model.initial_state().tensors.items()}, {}))
    assert model.current_base_digest() == model.base_digest


def test_the_same_plan_builds_the_same_model(make, make_config):
    first = make(model__fusion="gated")
    again = build_model(make_config(data__text=True, model__fusion="gated"))
    assert first.initial_state().digest() == again.initial_state().digest()
    assert first.initial_state().digest() != make(model__fusion="gated", seed=1).initial_state().digest()


def test_an_image_model_reads_no_reports(make_model):
    model = make_model()
    assert model.text is None and model.fusion is None and model.text_is_frozen
    with pytest.raises(ModelError, match=r"reads no reports"):
        model.read_text(torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("backbone", ["test_resnet", "densenet121", "test_convnext", "test_efficientnet"])
def test_a_cnn_meets_text_too(make, moved, backbone):
    model = make(model__backbone=f"timm:{backbone}", pet__method="bitfit", pet__scope="last-1")
    state = moved(model, step=0.05)
    with_report = said(model, state)
    state.tensors["fusion.text_head.weight"].zero_()
    image_alone = said(model, state)
    assert with_report.isfinite().all() and not torch.allclose(with_report, image_alone)
