"""The benchmark of the frozen-prefix cache: its bound is the arithmetic, its limit can be missed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from client.prefix_cache import StudyInputs
from common.model.build import build_model
from simulations.benchmarks.pairs import Ratio
from simulations.benchmarks.prefix import Finding, main, operations, plan, studies

WIDTH, TOKENS, BATCH, BLOCKS = 384, 5, 4, 12
BLOCK = 2 * 12 * WIDTH**2 * TOKENS * BATCH
"""Operations of a block's four linear layers, forward: 12 D^2 multiply-adds a token."""


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("trained", [2, 4])
def test_the_cache_saves_what_the_frozen_blocks_cost(trained: int, pool: str) -> None:
    """By hand: the linear layers and both products of attention in each block, and the patch embedding."""
    config = plan(str(trained), 32, BATCH, cache=True, pool=pool)
    model = build_model(config)
    data = studies(BATCH, 32, model.findings)
    kept = StudyInputs(model, data, config.train)
    plain = StudyInputs(model, data, plan(str(trained), 32, BATCH, cache=False, pool=pool).train)
    saved = operations(model, plain, data, BATCH) - operations(model, kept, data, BATCH)
    attention = 2 * 2 * TOKENS**2 * WIDTH * BATCH
    patches = 2 * 16 * 16 * 3 * WIDTH * (TOKENS - 1) * BATCH
    assert saved == pytest.approx((BLOCKS - trained) * (BLOCK + attention) + patches, rel=0.01)


def test_a_row_far_from_the_bound_misses_it() -> None:
    near = Finding("2", "avg", Ratio(3.2, 3.1, 3.3, 5), 3.6, 0.9, 38_400, 0.001)
    assert near.share == pytest.approx(3.2 / 3.6) and not near.missed
    far = dataclasses.replace(near, ratio=Ratio(3.0, 2.9, 3.1, 5))
    assert far.missed and not dataclasses.replace(far, trained="6").missed
    assert not dataclasses.replace(far, pool="token").missed


def test_it_runs_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prefix.json"
    small = ["--studies", "4", "--size", "32", "--batch", "4", "--pairs", "2", "--threads", "1"]
    assert main([*small, "--pools", "token", "--trained", "head", "all", "--json", str(file)]) == 0
    head, everything = json.loads(file.read_text())
    assert head["bytes_per_image"] == 2 * WIDTH and everything["bytes_per_image"] == 0
    assert everything["bound"] == 1 and everything["apart"] == 0
    said = capsys.readouterr().out
    assert "without / with the cache" in said and "head" in said and "bound" in said
    if not torch.cuda.is_available():
        assert main([*small, "--device", "cuda"]) == 0 and "not run: no GPU" in capsys.readouterr().out
