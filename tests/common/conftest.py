"""Tiny models: timm's own test networks, a few thousand parameters, milliseconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.adapter import AdapterState
from common.model.build import CxrModel


@pytest.fixture(scope="session")
def moved() -> Callable[..., AdapterState]:
    """An adapter in which every value differs from the start, as after some training."""

    def move(model: CxrModel, seed: int = 0, step: float = 0.1) -> AdapterState:
        generator = torch.Generator().manual_seed(seed)
        start = model.initial_state()
        tensors = {n: t + step * torch.randn(t.shape, generator=generator) for n, t in start.tensors.items()}
        return AdapterState(tensors, {})

    return move


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    def draw(model: CxrModel, count: int = 2) -> Tensor:
        size = model.config.data.image_size
        generator = torch.Generator().manual_seed(7)
        return torch.randn(count, model.channels, size, size, generator=generator)

    return draw


@pytest.fixture(scope="session")
def logits(images: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a model says, in evaluation mode, after laying in a state if one is given."""

    def say(model: CxrModel, state: AdapterState | None = None) -> Tensor:
        if state is not None:
            model.load(state)
        model.train_mode(False)
        with torch.no_grad():
            return model.forward(images(model))

    return say
