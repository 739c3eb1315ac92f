"""The benchmark times real workers both ways, and says where they do not train the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.protocol import Answer
from simulations.benchmarks import stacked

SMALL = (
    "--sites 3 --studies 14 --stack 2 3 --pairs 2 --threads 1 --size 32 --backbone timm:test_vit --arms head"
)


def test_the_table_and_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stacked.main([*SMALL.split(), "--json", str(tmp_path / "stacked.json")]) == 0
    rows = json.loads((tmp_path / "stacked.json").read_text())
    assert [(row["arm"], row["stack"], row["faster"]["pairs"]) for row in rows] == [
        ("head", 2, 2),
        ("head", 3, 2),
    ]
    for row in rows:
        assert 0 < row["faster"]["low"] <= row["faster"]["value"] <= row["faster"]["high"]
        assert row["apart"] < 1e-3
        assert row["studies_per_second"] > 0
    shown = capsys.readouterr().out
    assert "3 sites of 14 studies" in shown and "both ways send the same updates" in shown


def test_other_updates_are_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stacked, "APART", -1.0)
    assert stacked.main(SMALL.split()) == 1
    assert "updates differ by more than -1: head" in capsys.readouterr().out


def test_the_distance_of_two_updates() -> None:
    one, other = (Answer("north", update=np.array(v, np.float32)) for v in ([3.0, 4.0], [3.0, 4.5]))
    assert stacked.distance(one, one) == 0
    assert stacked.distance(one, other) == pytest.approx(0.1)
    assert stacked.distance(one, Answer("north", code="E_DATA")) == float("inf")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert stacked.main(["--device", "cuda"]) == 0
    assert capsys.readouterr().out == "not run: no GPU\n"
