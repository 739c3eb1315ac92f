"""What every test shares: a quiet, offline environment and the way to real radiographs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ |= {
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRANSFORMERS_OFFLINE": "1",
}

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
