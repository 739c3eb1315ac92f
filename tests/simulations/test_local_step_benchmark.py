"""The benchmark of the local step: both ways take the same steps, but for the choice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.pet.fused import FusedLinear
from simulations.benchmarks import local_step

SMALL = ["--size", "32", "--batch", "2", "--steps", "1", "--pairs", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timm's smallest ViT, and DenseNet, whose layers are small enough."""
    for name, choice in local_step.CHOICES.items():
        if choice.backbone == local_step.VIT:
            small = local_step.dataclasses.replace(choice, backbone="test_vit")
            monkeypatch.setitem(local_step.CHOICES, name, small)


def test_every_choice_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "steps.json"
    choices = [name for name in local_step.CHOICES if name != "products"]
    assert local_step.main([*SMALL, "--choices", *choices, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["choice"] for row in rows] == choices
    assert all(0 < row["low"] <= row["value"] <= row["high"] for row in rows)
    said = capsys.readouterr().out
    assert all(local_step.CHOICES[name].words in said for name in choices)


@pytest.mark.parametrize("name", [*local_step.CHOICES])
def test_a_choice_changes_the_time_and_not_the_logits(name: str) -> None:
    choice = local_step.CHOICES[name]
    ours, other = (local_step.model_of(choice, 32) for _ in range(2))
    choice.undo(other)
    images = torch.randn(2, ours.channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = ours.forward(images)
        with choice.around():
            torch.testing.assert_close(other.forward(images), said, atol=1e-4, rtol=1e-4)


def test_what_is_undone_is_gone() -> None:
    model = local_step.model_of(local_step.CHOICES["lora"], 32)
    assert any(isinstance(m, FusedLinear) for m in model.net.modules())
    local_step.CHOICES["lora"].undo(model)
    assert not any(isinstance(m, FusedLinear) for m in model.net.modules())
    model = local_step.model_of(local_step.CHOICES["token"], 32)
    local_step.CHOICES["token"].undo(model)
    blocks = len(model.arch.blocks)
    assert model.prefix(torch.zeros(1, model.channels, 32, 32), blocks).shape[1] > 1
