"""Small sites of noise images that differ in size, and in which findings they annotate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from client.data.dataset import SiteData
from client.prefix_cache import StudyInputs
from client.train import LocalResult, train_round
from common.adapter import AdapterState
from common.model.build import CxrModel
from simulations.stacked.training import Student, Task, train_stacked

FINDINGS = ("cardiomegaly", "effusion", "edema", "consolidation")
SIZES = {"north": 21, "east": 9, "south": 14}


def noise_site(seed: int, train: int, unowned: int | None = None) -> SiteData:
    """Return a site with ``train`` training studies and six others; some labels are missing."""
    generator = np.random.default_rng(seed)
    studies = train + 6
    labels = (generator.random((studies, 4)) < 0.5).astype(np.float32)
    labels[generator.random((studies, 4)) < 0.2] = np.nan
    if unowned is not None:
        labels[:, unowned] = np.nan
    return SiteData(
        findings=FINDINGS,
        pixels=generator.integers(0, 256, (studies, 32, 32), dtype=np.uint8),
        labels=labels,
        patients=np.array([f"p{i}" for i in range(studies)]),
        clinical=generator.normal(60, 10, (studies, 1)).astype(np.float32),
        split=dict(
            zip(
                ("train", "validation", "test"),
                np.split(np.arange(studies), [train, train + 3]),
                strict=True,
            )
        ),
        owned=~np.isnan(labels[:train]).all(axis=0),
    )


@pytest.fixture(scope="session")
def sites() -> dict[str, SiteData]:
    """Three sites; the last does not annotate the first finding."""
    return {
        name: noise_site(seed, train, 0 if name == "south" else None)
        for seed, (name, train) in enumerate(SIZES.items())
    }


Both = Callable[..., tuple[list[LocalResult], list[LocalResult]]]


@pytest.fixture(scope="session")
def both_ways(sites: dict[str, SiteData]) -> Both:
    """Train a round at every site one by one, and in one pass: both results, in the sites' order."""

    def train(
        model: CxrModel, start: AdapterState | None = None, number: int = 1, **more: object
    ) -> tuple[list[LocalResult], list[LocalResult]]:
        start = start or model.initial_state()
        made = {name: StudyInputs(model, data, model.config.train) for name, data in sites.items()}
        inputs = {name: of_site.of_round(number) for name, of_site in made.items()}
        tasks = [
            Task(model, data, inputs[name], start, number, name, **more)  # type: ignore[arg-type]
            for name, data in sites.items()
        ]
        alone = [train_round(**{f: getattr(task, f) for f in Task.__dataclass_fields__}) for task in tasks]
        return alone, train_stacked([Student(task) for task in tasks])

    return train


def distance(one: LocalResult, other: LocalResult, start: AdapterState) -> float:
    """Return how far two results are apart, as a share of how far the first moved."""
    apart = sum(float((t - other.state.tensors[n]).square().sum()) for n, t in one.state.tensors.items())
    moved = sum(float((t - start.tensors[n]).square().sum()) for n, t in one.state.tensors.items())
    return float((apart / moved) ** 0.5)


@pytest.fixture(scope="session", name="distance")
def _distance() -> Callable[[LocalResult, LocalResult, AdapterState], float]:
    return distance
