"""The benchmark of codecs: what it counts is what sites would send, and its grid asks what it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common.adapter import AdapterSchema
from common.config import RunConfig
from common.pet.budget import trained_parameters
from simulations.benchmark.cells import expand
from simulations.benchmark.grid import load_grid
from simulations.benchmarks.codecs import CODECS, Cost, costs, main, missed, plan

SCHEMA = AdapterSchema((("w", (50_000,)),))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Cost]:
    rng = np.random.default_rng(0)
    updates = {
        (site, number): rng.normal(size=SCHEMA.numel).astype(np.float32)
        for site in ("a", "b")
        for number in (1, 2)
    }
    return costs(updates, {1: SCHEMA, 2: SCHEMA}, 500_000, tmp_path_factory.mktemp("owed"))


def test_bytes_and_errors_of_known_updates(found: list[Cost]) -> None:
    by_name = {cost.codec: cost for cost in found}
    assert list(by_name) == list(CODECS)
    plain, half, eighth = by_name["fp32"], by_name["fp16"], by_name["int8"]
    assert (plain.payload, plain.ratio, plain.full) == (200_000, 1.0, 10.0)
    assert plain.error == plain.owed == 0.0
    assert half.ratio == 2.0 and half.error < 1e-3
    assert 3.9 < eighth.ratio < 4 and 0.005 < eighth.error < 0.007
    top = by_name["top 1 %"]
    assert 150 < top.ratio < 220 and 0.9 < top.error < 1 and top.owed > 0.9


def test_a_missed_limit_is_said(found: list[Cost]) -> None:
    assert not missed(found)
    worse = [dataclasses.replace(cost, ratio=2.0, payload=2e5) for cost in found]
    words = missed(worse)
    assert len(words) == 2 and "3.9" in words[0] and "100,000" in words[1]


def test_the_budget_is_the_published_one() -> None:
    config = plan("timm:vit_base_patch16_224", 16, 1, 1, 1, 64)
    assert trained_parameters(config) == 2_370_062


def test_only_the_codec_differs_in_the_grid() -> None:
    grid, experiment = load_grid("codecs")
    assert grid.reference == "fp32" and len(grid.seeds) == 3
    plans = {
        cell.coordinates["variant"]: cell.experiment.run_config(3)
        for cell in expand(grid, experiment)
        if cell.coordinates["seed"] == 0
    }
    plain = plans.pop("fp32").to_flat()
    full = plans.pop("full fine-tuning, fp32")
    assert full.pet.method == "full" and full.wire.codec == "fp32"
    for config in plans.values():
        assert isinstance(config, RunConfig)
        changed = {key for key, value in config.to_flat().items() if plain[key] != value}
        assert changed <= {"wire.codec", "wire.keep", "wire.feedback"} and "wire.codec" in changed


@pytest.mark.slow
def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["--backbone", "timm:test_vit", "--rank", "2", "--side", "32", "--rounds", "2", "--bytes-only"]
    assert main([*told, "--json", str(tmp_path / "told.json")]) == 0
    assert "int8" in capsys.readouterr().out
    assert (tmp_path / "told.json").stat().st_size > 500
