"""Some images to pretrain on, and models small enough to do it in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.data.dataset import SiteData
from client.data.unlabelled import Unlabelled
from simulations.phantom.cases import Population, sample_cases
from simulations.phantom.render import render
from simulations.phantom.report import write_reports

SIZE, IMAGES = 32, 20


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., SiteData]:
    """Site data of phantoms; only what pretraining reads of it is there."""
    cases = sample_cases(IMAGES, seed=5, population=Population(studies_per_patient=1.0))
    pixels = np.round(render(cases, SIZE) * 255).astype(np.uint8)
    told = [f"{report.findings} {report.impression}" for report in write_reports(cases)]

    def make(count: int = IMAGES, reports: bool = False) -> SiteData:
        rows = np.arange(count)
        texts = tuple(told[:count]) if reports else ()
        pool = Unlabelled(pixels, rows, texts, np.array([f"{i}.png" for i in rows]), Path())
        none = np.empty((IMAGES, 1), dtype=np.float32)
        split = {name: np.empty(0, dtype=np.int64) for name in ("train", "validation", "test")}
        patients = np.array([str(i) for i in range(IMAGES)])
        return SiteData(("edema",), pixels, none, patients, none[:, :0], split, np.array([True]), pool=pool)

    return make
