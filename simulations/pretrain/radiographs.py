"""The radiographs a backbone is pretrained on: phantoms of reserved seeds, stored by random scanners."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.model.base import EMBEDDED_MEAN, EMBEDDED_STD
from simulations.phantom.cases import Population, sample_cases
from simulations.phantom.render import render
from simulations.phantom.report import write_reports
from simulations.phantom.scanner import SCANNERS, apply_scanner

FIRST_RESERVED_SEED = 1_000_000_000
"""Experiments draw phantoms from seeds below this; pretraining from here on."""
SIZE = 96


@dataclass(frozen=True)
class Radiographs:
    """Pictures before any scanner, ``[n, S, S]``, and the report of each."""

    pixels: NDArray[np.uint8]
    reports: tuple[str, ...]


def draw_radiographs(count: int) -> Radiographs:
    """Render radiographs and write their reports (findings and impression), from reserved seeds."""
    pixels = np.empty((count, SIZE, SIZE), dtype=np.uint8)
    reports: list[str] = []
    chunk = 1000
    for start in range(0, count, chunk):
        n = min(chunk, count - start)
        population = Population(studies_per_patient=1.0)
        cases = sample_cases(n, seed=FIRST_RESERVED_SEED + start, population=population)
        pixels[start : start + n] = np.round(render(cases, SIZE, workers=os.cpu_count() or 1) * 255)
        reports += [f"{report.findings} {report.impression}" for report in write_reports(cases)]
    return Radiographs(pixels, tuple(reports))


def scanned(clean: NDArray[np.uint8], step: int, rng: np.random.Generator) -> Tensor:
    """Store a batch as some scanner would: normalised ``[B, 1, S, S]``."""
    scanner = SCANNERS[rng.choice(list(SCANNERS))]
    index = rng.integers(0, 2**31, len(clean))
    stored = apply_scanner(clean.astype(np.float32) / np.float32(255), scanner, seed=step, index=index)
    grey = stored.astype(np.float32) / (2**scanner.bits - 1)
    grey = 1 - grey if scanner.inverted else grey
    return (torch.from_numpy(grey)[:, None] - EMBEDDED_MEAN) / EMBEDDED_STD
