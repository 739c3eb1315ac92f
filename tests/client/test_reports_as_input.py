"""Reports at a site: cached where nothing reads them anew, left out on purpose, learnt from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.data.dataset import SiteData
from client.evaluate import predict
from client.frozen import TOGETHER
from client.prefix_cache import StudyInputs, drop_modalities, leave_out
from client.train import train_round
from common.adapter import AdapterState
from common.errors import DataError

STUDIES, FINDINGS = 30, ("cardiomegaly", "effusion", "edema", "consolidation")
WORDS = ("dyspnea", "fever", "fall", "pain", "cough")


@pytest.fixture(scope="module")
def site():
    """Thirty noise images; the report tells the first finding, and every fifth study has none."""
    generator = np.random.default_rng(0)
    labels = (generator.random((STUDIES, 4)) < 0.5).astype(np.float32)
    texts = tuple(
        "" if i % 5 == 0 else f"{'Positive' if labels[i, 0] else 'Negative'}, {WORDS[i % 4]} for {i} days."
        for i in range(STUDIES)
    )
    parts = np.split(np.arange(STUDIES), [18, 24])
    return SiteData(
        findings=FINDINGS,
        pixels=generator.integers(0, 256, (STUDIES, 32, 32), dtype=np.uint8),
        labels=labels,
        patients=np.array([f"p{i}" for i in range(STUDIES)]),
        clinical=np.zeros((STUDIES, 0), np.float32),
        split=dict(zip(("train", "validation", "test"), parts, strict=True)),
        owned=np.ones(4, bool),
        texts=texts,
    )


@pytest.fixture
def make(make_model):
    def with_text(**over):
        return make_model(data__text=True, train__batch_size=6, **over)

    return with_text


def inputs_of(model, site, **train):
    return StudyInputs(model, site, model.config.train.model_copy(update=train))


def moved(model, step=0.1):
    generator = torch.Generator().manual_seed(0)
    start = model.initial_state().tensors
    return AdapterState(
        {n: t + step * torch.randn(t.shape, generator=generator) for n, t in start.items()}, {}
    )


EVERY = np.arange(STUDIES)


@pytest.mark.parametrize("fusion", ["concatenate", "gated", "cross-attention"])
@pytest.mark.parametrize("towers", ["vision", "text", "both"])
def test_a_cache_says_what_the_towers_say(make, site, fusion, towers):
    model = make(model__fusion=fusion, pet__towers=towers, pet__scope="last-2")
    model.load(moved(model))
    cached = inputs_of(model, site, cache_dtype="fp32")
    plain = inputs_of(model, site, prefix_cache=False)
    said, expected = predict(model, cached, EVERY), predict(model, plain, EVERY)
    np.testing.assert_allclose(said, expected, atol=1e-6, rtol=1e-6)
    assert (cached.image_outputs, plain.image_outputs) == ("memory", "nowhere")
    assert (cached.text_outputs, plain.text_outputs) == (
        ("memory" if towers == "vision" else "nowhere"),
        "nowhere",
    )


def test_the_frozen_tower_runs_once_a_report(make, site, monkeypatch):
    model = make(pet__method="head")
    ran = []
    hidden = model.text.hidden
    monkeypatch.setattr(model.text, "hidden", lambda ids, mask: ran.append(len(ids)) or hidden(ids, mask))
    inputs = inputs_of(model, site)
    predict(model, inputs, EVERY)
    once = sum(ran)
    for _ in range(2):
        predict(model, inputs, EVERY)
    assert sum(ran) == once == -(-STUDIES // TOGETHER["cpu"]) * TOGETHER["cpu"]


def test_random_images_do_not_stop_reports_from_being_kept(make, site):
    model = make(pet__method="head", train__augment=0.5)
    inputs = StudyInputs(model, site, model.config.train)
    train_round(model, site, inputs, model.initial_state(), 1, "north")
    assert (inputs.image_outputs, inputs.text_outputs) == ("nowhere", "memory")


def test_a_model_that_gets_no_report_says_what_it_says_of_studies_without(make, site):
    model = make()
    model.load(moved(model))
    silent = replace(site, texts=("",) * STUDIES)
    without = predict(model, inputs_of(model, site), EVERY, "text")
    np.testing.assert_allclose(without, predict(model, inputs_of(model, silent), EVERY), atol=1e-6)
    whole = predict(model, inputs_of(model, site), EVERY)
    changed = np.abs(whole - without).max(axis=1) > 1e-5
    assert changed.tolist() == [text != "" for text in site.texts]


def test_a_model_that_gets_no_image_says_the_same_of_any_image(make, site):
    model = make()
    model.load(moved(model))
    other = replace(site, pixels=255 - site.pixels)
    first, second = (predict(model, inputs_of(model, data), EVERY, "image") for data in (site, other))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - predict(model, inputs_of(model, site), EVERY)).max() > 1e-4
    without_both = first[[i for i, text in enumerate(site.texts) if not text]]
    assert np.ptp(without_both, axis=0).max() < 1e-6


def test_as_many_come_without_image_as_without_report_and_none_without_both():
    told = torch.arange(4000) % 4 != 0
    without = drop_modalities(told, 0.3, torch.Generator().manual_seed(0))
    assert without is not None and not (without.text & without.image).any()
    assert not without.image[~told].any()
    assert abs(without.text.float().mean() - 0.3) < 0.03
    assert abs(without.image[told].float().mean() - 0.3) < 0.03
    assert drop_modalities(told, 0.0, torch.Generator()) is None
    most = drop_modalities(told, 0.8, torch.Generator().manual_seed(0))
    assert most is not None and not (most.text & most.image).any() and (most.text | most.image)[told].all()
    assert leave_out(3, "") is None


@pytest.mark.parametrize("towers", ["vision", "both"])
def test_training_with_dropped_modalities_gives_the_same_bits_again(make, site, towers):
    model = make(train__modality_dropout=0.3, pet__towers=towers, lora__dropout=0.1)
    start = model.initial_state()
    inputs = inputs_of(model, site)
    first, again = (train_round(model, site, inputs, start, 1, "north").state.digest() for _ in range(2))
    assert first == again
    assert train_round(model, site, inputs, start, 2, "north").state.digest() != first


def test_stand_ins_are_learnt_where_something_is_missing(make, site):
    model = make(train__modality_dropout=0.3, train__epochs=3, train__lr=0.01)
    start = model.initial_state()
    result = train_round(model, site, inputs_of(model, site), start, 1, "north").state.tensors
    for name in ("fusion.missing_image", "fusion.missing_text", "fusion.text_head.weight"):
        assert result[name].abs().max() > 0, name
    whole = make(train__epochs=3, train__lr=0.01)
    told = replace(site, texts=tuple(text or "Cough." for text in site.texts))
    kept = train_round(whole, told, inputs_of(whole, told), start, 1, "north").state.tensors
    for name in ("fusion.missing_image", "fusion.missing_text"):
        assert not kept[name].any(), name


def test_a_probe_moves_the_head_and_what_joins_and_nothing_else(make, site):
    model = make(rounds__probe=1, rounds__count=2, model__fusion="gated")
    start = model.initial_state()
    result = train_round(model, site, inputs_of(model, site), start, 1, "north").state
    moved_names = {n for n in result.tensors if not torch.equal(result.tensors[n], start.tensors[n])}
    expected = {"head.weight", "head.bias", "fusion.gate.weight", "fusion.image.weight", "fusion.text.weight"}
    assert moved_names == expected | {"fusion.missing_text"}  # some studies have no report


def test_what_joins_trains_at_the_head_s_rate(make, site):
    """It begins anew with the run, as the head does: at an adapter's rate of next to nothing it moves."""
    model = make(train__lr=1e-12, train__head_lr=0.05, model__fusion="cross-attention")
    start = model.initial_state()
    result = train_round(model, site, inputs_of(model, site), start, 1, "north").state.tensors
    assert (result["fusion.out.weight"] - start.tensors["fusion.out.weight"]).abs().max() > 1e-3
    lora = [n for n in result if ".lora_" in n]
    assert lora and all((result[n] - start.tensors[n]).abs().max() < 1e-9 for n in lora)


def test_reports_that_tell_the_label_are_used(make, site):
    """Noise images, and a report that names the first finding: the model learns it from the text."""
    model = make(train__epochs=30, train__lr=5e-3)
    result = train_round(model, site, inputs_of(model, site), model.initial_state(), 1, "north")
    model.load(result.state)
    rows = np.array([i for i in site.split["train"] if site.texts[i]])
    said = predict(model, inputs_of(model, site), rows)[:, 0] > 0.5
    assert (said == (site.labels[rows, 0] == 1)).mean() > 0.9


def test_a_head_row_of_a_finding_the_site_does_not_annotate_stays(make, site):
    labels = site.labels.copy()
    labels[:, 2] = np.nan
    foreign = replace(site, labels=labels, owned=np.array([True, True, False, True]))
    model = make(train__weight_decay=0.1)
    start = moved(model)
    result = train_round(model, foreign, inputs_of(model, foreign), start, 1, "north").state.tensors
    for name in model.schema.head:
        assert torch.equal(result[name][2], start.tensors[name][2]), name
        assert not torch.equal(result[name][0], start.tensors[name][0]), name


def test_data_without_texts_is_refused(make, site):
    model = make()
    with pytest.raises(DataError, match="reads reports"):
        inputs_of(model, replace(site, texts=()))
