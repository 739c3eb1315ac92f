"""What every test shares: a quiet, offline environment and the way to real radiographs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from common.config import RunConfig, Scalar
    from common.model.build import CxrModel

os.environ |= {
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRANSFORMERS_OFFLINE": "1",
}

# How long an example takes says how busy the machine is, not whether it is right.
settings.register_profile("any-pace", deadline=None)
settings.load_profile("any-pace")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs: ``FEDCXR_DATA``, or ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("FEDCXR_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "real_sites" / "manifest.csv").is_file():
        pytest.skip(f"no real_sites/manifest.csv in {folder}; set FEDCXR_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small lose more to waiting threads than they gain."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """RunConfig over a 6-block ViT of width 64 at 32 px; flat keys override."""

    from common.config import RunConfig

    def make(**over: Scalar) -> RunConfig:
        flat: dict[str, Scalar] = {"model.backbone": "timm:test_vit", "data.image-size": 32}
        return RunConfig.from_flat(flat | {k.replace("__", "."): v for k, v in over.items()})

    return make


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., RunConfig]) -> Callable[..., CxrModel]:
    from common.model.build import build_model

    def make(**over: Scalar) -> CxrModel:
        return build_model(make_config(**over))

    return make
