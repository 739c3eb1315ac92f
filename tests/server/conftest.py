"""Updates and configurations as the strategies see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from common.config import RunConfig, Scalar
from common.model.build import CxrModel, build_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small lose more to waiting threads than they gain."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """RunConfig over a 6-block ViT of width 64 at 32 px; ``section__key`` overrides."""

    def make(**over: Scalar) -> RunConfig:
        flat: dict[str, Scalar] = {"model.backbone": "timm:test_vit", "data.image-size": 32}
        return RunConfig.from_flat(flat | {k.replace("__", "."): v for k, v in over.items()})

    return make


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., RunConfig]) -> Callable[..., CxrModel]:
    def make(**over: Scalar) -> CxrModel:
        return build_model(make_config(**over))

    return make
