"""``budget`` and ``backbones`` at the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from common.model.zoo import BACKBONES
from simulations.cli import app

TINY = ["--set", "model.backbone=timm:test_vit", "--set", "data.image_size=32"]


@pytest.fixture
def said():
    def say(*words, exit_code=0):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == exit_code, result.output
        return result.output

    return say


def test_a_table_of_what_each_method_can(said):
    shown = said("budget", "--target", "20k", *TINY)
    assert "pet.rank=" in shown and "pet.bottleneck=" in shown
    assert "20,000 parameters on timm:test_vit, 4 findings" in shown
    assert "nearest: no size and no scope" in shown


def test_as_json(said):
    facts = json.loads(said("budget", "--target", "20k", "--method", "lora, norm", "--json", *TINY))
    assert facts["target"] == 20_000
    lora, norm = facts["methods"]
    assert lora["fits"] and abs(lora["parameters"] - 20_000) <= 200
    assert not norm["fits"]


def test_a_refusal_names_the_nearest_and_has_an_exit_code(said):
    shown = said("budget", "--target", "1M", "--method", "norm", *TINY, exit_code=2)
    assert "no setting trains 1,000,000 parameters within 1 %" in shown
    assert "norm with pet.scope = all trains" in shown


def test_an_experiment_s_model_counts(said):
    """The demo adapts the last two blocks of the embedded ViT: 128 wide, 5 findings."""
    facts = json.loads(
        said("budget", "--target", "45701", "--method", "lora", "--experiment", "demo", "--json")
    )
    (fit,) = facts["methods"]
    assert fit["settings"] == {"pet.rank": 11}
    assert fit["parameters"] == 5 * 129 + 2 * 11 * (128 + 384 + 128 + 128 + 2 * (128 + 512))


def test_a_wrong_target_is_told_clearly(said):
    assert "2.37M" in said("budget", "--target", "many", exit_code=2)


def test_backbones_are_listed(said):
    shown = said("backbones")
    assert all(name in shown for name in BACKBONES)
    assert "safetensors" in shown
    told = json.loads(said("backbones", "--json"))
    assert told["rad-dino"]["mean"] == [0.5307]
    assert set(told) == set(BACKBONES)
