"""Rounds of pretraining: what moves, what stays, and that a repeated round gives the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from client.pretrain.rounds import pretrain_round
from common.adapter import AdapterState
from common.errors import DataError, ModelError
from common.model.pretext import check_pretraining
from common.phase import trained_names

MASKED = {"pretrain__rounds": 3, "pretrain__batch_size": 8, "pet__rank": 2}
TEXT = {**MASKED, "pretrain__task": "image-text"}
ENCODER = {**MASKED, "pretrain__parameters": "encoder"}


def moved(before: AdapterState, after: AdapterState) -> set[str]:
    return {name for name in before.tensors if not torch.equal(before.tensors[name], after.tensors[name])}


@pytest.mark.parametrize("over", [MASKED, TEXT], ids=["masked-image", "image-text"])
@pytest.mark.parametrize("method", ["lora", "adapter", "vera", "ia3", "bitfit", "norm"])
def test_only_the_adapter_moves_and_the_base_keeps_its_digest(
    make_model, make_pool, tmp_path: Path, over, method: str
) -> None:
    model, data = make_model(**over, pet__method=method), make_pool(reports=True)
    start = model.initial_state()
    result = pretrain_round(model, data, start, 1, "north", tmp_path)
    assert moved(start, result.state) <= {*trained_names(model.schema, model.config, 1)}
    assert moved(start, result.state)
    assert not moved(start, result.state) & {*model.schema.head}
    assert model.current_base_digest() == model.base_digest
    assert result.steps == 3  # 20 images in batches of 8
    assert 0 < result.loss < 20


def test_b_is_no_longer_zero(make_model, make_pool, tmp_path: Path) -> None:
    model = make_model(**MASKED)
    state = pretrain_round(model, make_pool(), model.initial_state(), 1, "north", tmp_path).state
    factors = [tensor for name, tensor in state.tensors.items() if ".lora_B." in name]
    assert len(factors) == 24
    assert all(factor.abs().max() > 0 for factor in factors)


@pytest.mark.parametrize("backbone", ["timm:test_vit", "timm:resnet10t"])
def test_the_encoder_moves_whole_and_the_adapter_waits(
    make_model, make_pool, tmp_path, backbone: str
) -> None:
    model = make_model(**ENCODER, model__backbone=backbone, data__image_size=64)
    data = make_pool()
    data = dataclasses.replace(
        data, pool=dataclasses.replace(data.pool, pixels=data.pool.pixels.repeat(2, axis=1).repeat(2, axis=2))
    )
    start = model.initial_state()
    buffers = {name: buffer.clone() for name, buffer in model.net.named_buffers()}
    changed = moved(start, pretrain_round(model, data, start, 1, "north", tmp_path).state)
    assert changed <= {*model.schema.encoder}
    assert len(changed) > 0.9 * len(model.schema.encoder)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.net.named_buffers())
    assert model.current_base_digest() == model.base_digest  # what it started from counts


@pytest.mark.parametrize("over", [MASKED, TEXT, ENCODER], ids=["masked-image", "image-text", "encoder"])
def test_a_repeated_round_gives_the_same_bits(make_model, make_pool, tmp_path: Path, over) -> None:
    """After the worker has restarted, too: with another model object and the reports read anew."""
    plan = {**over, "lora__dropout": 0.2, "train__augment": 0.5}
    model, data = make_model(**plan), make_pool(reports=True)
    first = pretrain_round(model, data, model.initial_state(), 1, "north", tmp_path)
    second = pretrain_round(model, data, first.state, 2, "north", tmp_path)
    kept = (tmp_path / "round-0002.safetensors").read_bytes()
    torch.manual_seed(99)
    again = make_model(**plan)
    repeated = pretrain_round(again, make_pool(reports=True), first.state, 2, "north", tmp_path)
    assert repeated.state.digest() == second.state.digest()
    assert repeated.loss == second.loss
    assert (tmp_path / "round-0002.safetensors").read_bytes() == kept
    elsewhere = pretrain_round(again, data, first.state, 2, "south", tmp_path / "south")
    assert elsewhere.state.digest() != second.state.digest()


def test_the_decoder_goes_on_where_it_was(make_model, make_pool, tmp_path: Path) -> None:
    model, data = make_model(**MASKED, pretrain__lr=3e-3, pretrain__epochs=8), make_pool()
    state, losses = model.initial_state(), []
    for number in (1, 2, 3):
        result = pretrain_round(model, data, state, number, "north", tmp_path / "kept")
        state = result.state
        losses.append(result.loss)
    assert losses[2] < losses[1] < losses[0] - 0.1
    anew = pretrain_round(model, data, state, 3, "north", tmp_path / "empty").loss
    assert anew > losses[2] + 0.1


def test_text_is_learnt_to_be_told_apart(make_model, make_pool, tmp_path: Path) -> None:
    model, data = make_model(**TEXT, pretrain__epochs=40, pretrain__lr=3e-3), make_pool(reports=True)
    state, losses = model.initial_state(), []
    for number in (1, 2, 3):
        result = pretrain_round(model, data, state, number, "north", tmp_path)
        state = result.state
        losses.append(result.loss)
    assert losses[0] < np.log(8) + 0.2
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(1, 0, 3), (2, 0, 6), (1, 2, 2), (1, 7, 7)])
def test_steps(make_model, make_pool, tmp_path: Path, epochs: int, steps: int, expected: int) -> None:
    model = make_model(**MASKED, pretrain__epochs=epochs, pretrain__steps=steps)
    assert pretrain_round(model, make_pool(), model.initial_state(), 1, "n", tmp_path).steps == expected


@pytest.mark.parametrize("over", [MASKED, TEXT], ids=["masked-image", "image-text"])
def test_mixed_precision_reaches_about_the_same(make_model, make_pool, tmp_path: Path, over) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        model = make_model(**over, train__precision=precision)
        data, start = make_pool(reports=True), model.initial_state()
        losses.append(pretrain_round(model, data, start, 1, "n", tmp_path / precision).loss)
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


def test_lora_takes_turns_within_pretraining(make_model, make_pool, tmp_path: Path) -> None:
    model, data = make_model(**MASKED, lora__aggregation="rolora"), make_pool()
    start = model.initial_state()
    one = pretrain_round(model, data, start, 1, "north", tmp_path).state
    two = pretrain_round(model, data, one, 2, "north", tmp_path).state
    assert all(".lora_B." in name for name in moved(start, one))
    assert all(".lora_A." in name for name in moved(one, two))


def test_a_site_without_images_says_so(make_model, make_pool, tmp_path: Path) -> None:
    model = make_model(**TEXT)
    with pytest.raises(DataError, match="no image with a report"):
        pretrain_round(model, make_pool(0, reports=True), model.initial_state(), 1, "north", tmp_path)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"pet__method": "head"}, "nothing to move"),
        ({"data__text": True, "pet__towers": "text"}, "nothing to move"),
        (
            {"model__backbone": "timm:test_mambaout", "pet__method": "bitfit"},
            "how this backbone's features lie",
        ),
        ({"model__backbone": "timm:resnet10t", "pet__method": "bitfit"}, "equal patches"),
    ],
)
def test_what_a_model_cannot_do_is_said_before_anything_runs(make_model, over, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        check_pretraining(make_model(**MASKED, **over))
    assert caught.value.found and caught.value.fix


def test_a_plan_without_pretraining_is_fine_whatever_the_model(make_model) -> None:
    check_pretraining(make_model(pet__method="head", model__backbone="timm:test_mambaout"))
    check_pretraining(make_model(**TEXT, model__backbone="timm:test_mambaout", pet__method="bitfit"))
