"""The encoder that pretraining moved is a weights file another plan starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.adapter import AdapterState
from server.encoder import encoder_tensors

MOVES = {"pretrain__rounds": 1, "pretrain__parameters": "encoder", "pet__rank": 2}


def nudged(model) -> AdapterState:
    """The state with every tensor of the encoder changed, and the adapter as it begins."""
    generator = torch.Generator().manual_seed(0)
    tensors = dict(model.initial_state().tensors)
    for name in model.schema.encoder:
        tensors[name] = tensors[name] + 0.01 * torch.randn(tensors[name].shape, generator=generator)
    return AdapterState(tensors, {})


@pytest.mark.parametrize(
    "over",
    [
        {"pet__targets": "q, v"},
        {"pet__targets": "qkv, proj"},
        {"pet__method": "bitfit"},
        {"pet__method": "full"},
        {"pet__method": "adapter"},
        {"model__backbone": "timm:resnet10t", "pet__method": "lora", "data__image_size": 64},
        {"data__text": True},
    ],
    ids=lambda over: "-".join(map(str, over.values())),
)
def test_another_plan_starts_from_exactly_what_was_reached(make_model, tmp_path: Path, over) -> None:
    model = make_model(**MOVES, **over)
    state = nudged(model)
    tensors = encoder_tensors(model, state)
    save_file(tensors, tmp_path / "encoder.safetensors")
    plain = {key: value for key, value in over.items() if key.startswith(("model", "data__image"))}
    next_plan = make_model(pet__method="head", model__weights=str(tmp_path / "encoder.safetensors"), **plain)
    size = model.config.data.image_size
    images = torch.randn(2, model.channels, size, size)
    model.load(state)
    with torch.no_grad():
        torch.testing.assert_close(
            next_plan.image_features(images), model.image_features(images), rtol=0, atol=1e-5
        )
        model.load(model.initial_state())
        assert not torch.allclose(next_plan.image_features(images), model.image_features(images), atol=1e-3)
    assert next_plan.base_digest != model.base_digest


def test_it_does_not_depend_on_what_the_model_holds_now(make_model) -> None:
    model = make_model(**MOVES)
    state = nudged(model)
    first = encoder_tensors(model, state)
    model.load(state)
    assert all(torch.equal(first[name], tensor) for name, tensor in encoder_tensors(model, state).items())


def test_where_nothing_moves_there_is_no_file(make_model) -> None:
    for over in ({}, {"pretrain__rounds": 1}, {"pretrain__parameters": "encoder"}):
        model = make_model(**over)
        assert encoder_tensors(model, model.initial_state()) == {}
