"""The quickstart comparison: both sides train the same thing, and what it states is what it checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.model.build import build_model
from simulations.benchmarks.pairs import Ratio
from simulations.benchmarks.quickstart import Row, main, run_apart, table
from simulations.benchmarks.quickstart_task import Outcome, Task, prepare, run_bare, run_ours


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Two tiny sites and timm's smallest ViT."""
    tiny = Task(
        str(tmp_path_factory.mktemp("quickstart")),
        last=2,
        architecture="test_vit",
        blocks=6,
        image_size=32,
        sites=2,
        studies=40,
        rounds=2,
        epochs=1,
        cores=1,
    )
    prepare(tiny)
    return tiny


@pytest.mark.parametrize("last", [0, 2, 6])
def test_the_pattern_s_model_is_ours(task, last):
    """The same base and head say the same before training, and as many parameters are trained."""
    from simulations.benchmarks.quickstart_pattern import get_model, get_weights, set_weights

    task = replace(task, last=last)
    ours, theirs = build_model(task.config()), get_model(task)
    assert sum(t.numel() for t in get_weights(theirs, task).values()) == ours.schema.numel
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == ours.schema.numel
    start = ours.initial_state().tensors
    weights = {
        name: start[f"head.{name.rpartition('.')[2]}"] if last == 0 or ".head." in name else tensor
        for name, tensor in get_weights(theirs, task).items()
    }
    set_weights(theirs, task, weights)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours.train_mode(False)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward(images), theirs.eval()(images), atol=1e-5, rtol=1e-5)


def test_the_bare_loop_does_the_simulation_s_steps(task):
    """Ours ends with the bare loop's model: it contains those local steps, and no others."""
    ours, bare = run_ours(task), run_bare(task)
    assert ours.loss == pytest.approx(bare.loss, abs=1e-5)
    assert ours.auroc == pytest.approx(bare.auroc, abs=1e-6)


@pytest.mark.slow
def test_the_pattern_ends_at_about_the_same_model(task):
    """Other draws of A and of the order, the same work."""
    (theirs,) = run_apart(["pattern"], task).values()
    ours = run_ours(task)
    assert theirs.loss == pytest.approx(ours.loss, abs=0.1)
    assert theirs.steps is not None
    assert 0 < theirs.steps <= 1


def row(arm="last-2", gain=4.0, overhead=1.02, precision="fp32"):
    end = Outcome(1.0, 0.5, 0.7)
    ratios = (Ratio(gain, gain, gain, 2), Ratio(overhead, overhead, overhead, 2))
    return Row(arm, precision, *ratios, replace(end, steps=0.9), end)


def test_limits_are_checked():
    assert not row().missed
    assert len(row(gain=2.9).missed) == 1
    assert len(row(gain=2.9, overhead=1.2).missed) == 2
    assert not row(gain=0.5, overhead=2.0, precision="bf16").missed
    assert len(row("head", gain=19.0, overhead=3.0).missed) == 2
    assert not row("all", gain=1.11).missed


def test_the_table_tells_ratios_not_seconds():
    said = table([row()])
    assert "as many times as long as ours: 4 (95 % interval 4 to 4, 2 pairs)" in said
    assert "90%" in said


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 0
    assert capsys.readouterr().out == "not run: no GPU\n"
