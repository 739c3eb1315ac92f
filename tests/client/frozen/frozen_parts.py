"""A site of noise, and what the tests of frozen parts ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.activations import Place
from client.data.dataset import SiteData
from client.prefix_cache import StudyInputs
from client.train import train_round
from common.adapter import AdapterState
from common.model.build import CxrModel

STUDIES = 44
FINDINGS = ("cardiomegaly", "effusion", "edema", "consolidation")
EVERY = np.arange(STUDIES)


def noise_site() -> SiteData:
    """Noise images whose brightness tells the first finding; two are the same picture."""
    generator = np.random.default_rng(0)
    labels = (generator.random((STUDIES, 4)) < 0.5).astype(np.float32)
    pixels = generator.integers(0, 200, (STUDIES, 32, 32), dtype=np.uint8)
    pixels += (labels[:, 0, None, None] * 50).astype(np.uint8)
    pixels[3] = pixels[2]
    parts = np.split(np.arange(STUDIES), [34, 39])
    return SiteData(
        findings=FINDINGS,
        pixels=pixels,
        labels=labels,
        patients=np.array([f"p{i}" for i in range(STUDIES)]),
        clinical=np.zeros((STUDIES, 0), np.float32),
        split=dict(zip(("train", "validation", "test"), parts, strict=True)),
        owned=np.ones(4, bool),
    )


def inputs_of(model: CxrModel, site: SiteData, place: Path | None = None, **train: Any) -> StudyInputs:
    kept = None if place is None else Place(place, 10**9)
    return StudyInputs(model, site, model.config.train.model_copy(update=train), kept)


def moved(model: CxrModel, step: float = 0.1, seed: int = 0) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    start = model.initial_state().tensors
    return AdapterState(
        {n: t + step * torch.randn(t.shape, generator=generator) for n, t in start.items()}, {}
    )


def trained(model: CxrModel, site: SiteData, inputs: StudyInputs, number: int = 1) -> AdapterState:
    return train_round(model, site, inputs.of_round(number), moved(model), number, "north").state


def gap(one: AdapterState, other: AdapterState, start: AdapterState) -> float:
    """How far apart two adapters are, against how far they came."""
    between = sum(float((one.tensors[n] - other.tensors[n]).square().sum()) for n in one.tensors)
    come = sum(float((one.tensors[n] - start.tensors[n]).square().sum()) for n in one.tensors)
    return float((between / come) ** 0.5)


def never(*args: object) -> None:
    raise AssertionError("a frozen part ran again")
