"""A site and models for the tests of what is frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from client.data.dataset import SiteData
from common.model.build import CxrModel
from tests.client.frozen.frozen_parts import noise_site


@pytest.fixture(scope="module")
def site() -> SiteData:
    return noise_site()


@pytest.fixture
def make(make_model: Callable[..., CxrModel]) -> Callable[..., CxrModel]:
    def with_batches(**over: Any) -> CxrModel:
        return make_model(**{"train__batch_size": 8, "train__epochs": 2, **over})

    return with_batches
