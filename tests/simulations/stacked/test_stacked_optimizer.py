"""Every row moves as torch's optimiser moves it by itself."""

from __future__ import annotations

import pytest
import torch

from common.sections import TrainConfig
from simulations.stacked.optimise import StackedOptimizer, clip

RATES = (0.01, 0.03, 0.002)


@pytest.mark.parametrize(
    "train",
    [
        TrainConfig(),
        TrainConfig(weight_decay=0.2),
        TrainConfig(optimizer="sgd", momentum=0.9),
        TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.1),
        TrainConfig(optimizer="sgd", momentum=0.5, weight_decay=0.1),
    ],
)
def test_rows_move_as_torch_moves_them(train: TrainConfig) -> None:
    """Three sites of which the last does two steps and the second four of six."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 50, generator=generator)
    gradients = torch.randn(6, 3, 50, generator=generator)
    steps = (6, 4, 2)
    rows = start.clone()
    stacked = StackedOptimizer(rows, train)
    for step in range(6):
        busy = sum(step < count for count in steps)
        rates = torch.tensor(RATES[:busy])[:, None] / (step + 1)
        stacked.step(rows[:busy], gradients[step, :busy].clone(), rates)
    for row, begun, count, rate, site in zip(rows, start, steps, RATES, range(3), strict=True):
        alone = torch.nn.Parameter(begun.clone())
        if train.optimizer == "sgd":
            theirs: torch.optim.Optimizer = torch.optim.SGD(
                [alone], lr=rate, momentum=train.momentum, weight_decay=train.weight_decay
            )
        else:
            theirs = torch.optim.AdamW([alone], lr=rate, weight_decay=train.weight_decay)
        for step in range(count):
            theirs.param_groups[0]["lr"] = rate / (step + 1)
            alone.grad = gradients[step, site].clone()
            theirs.step()
        torch.testing.assert_close(row, alone.detach(), rtol=1e-6, atol=1e-7)
        assert not torch.equal(row, begun)


def test_values_of_one_row_may_have_their_own_rates() -> None:
    rows = torch.ones(2, 4)
    stacked = StackedOptimizer(rows, TrainConfig(optimizer="sgd", momentum=0.0))
    rates = torch.tensor([[0.1, 0.1, 0.0, 0.0], [0.0, 0.2, 0.2, 0.2]])
    stacked.step(rows, torch.ones(2, 4), rates)
    torch.testing.assert_close(rows, 1 - rates)


def test_each_row_is_clipped_as_torch_clips_it() -> None:
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(4, 30, generator=generator) * torch.tensor([[0.01], [1.0], [10.0], [0.0]])
    clipped = gradient.clone()
    clip(clipped, 1.0)
    for mine, given in zip(clipped, gradient, strict=True):
        alone = torch.nn.Parameter(torch.zeros(30))
        alone.grad = given.clone()
        torch.nn.utils.clip_grad_norm_([alone], 1.0)
        torch.testing.assert_close(mine, alone.grad)
    assert clipped[2].norm() == pytest.approx(1.0, rel=1e-4)
