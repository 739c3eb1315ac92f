"""A round of training against the same steps written out with torch's and peft's own parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from client.data.dataset import SiteData
from client.prefix_cache import StudyInputs
from client.train import train_round
from common.pet import fused
from common.seeds import torch_generator

PLAN = {"train__batch_size": 8, "train__epochs": 2, "train__schedule": "constant", "train__lr": 1e-2}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    rows = np.arange(30)
    return SiteData(
        findings=("cardiomegaly", "effusion", "edema", "consolidation"),
        pixels=rng.integers(0, 256, (30, 32, 32), dtype=np.uint8),
        labels=rng.integers(0, 2, (30, 4)).astype(np.float32),
        patients=np.array([f"p{i}" for i in rows]),
        clinical=np.zeros((30, 0), dtype=np.float32),
        split={"train": rows[:20], "validation": rows[20:], "test": rows[:0]},
        owned=np.ones(4, dtype=np.bool_),
    )


def by_hand(model, data, inputs):
    """Two epochs of the plan's steps: one optimiser call for each tensor, one loss read at each step."""
    train, parameters = model.config.train, list(model.parameters.values())
    model.load(model.initial_state())
    model.net.train()
    kind = torch.optim.SGD if train.optimizer == "sgd" else torch.optim.AdamW
    more = {"momentum": train.momentum} if train.optimizer == "sgd" else {}
    optimizer = kind(parameters, lr=train.lr, weight_decay=0.0, foreach=False, fused=False, **more)
    order, losses = torch_generator(0, "order", "north", 1), []
    for _ in range(2):
        rows = data.split["train"][torch.randperm(20, generator=order).numpy()]
        for batch in (rows[:8], rows[8:16], rows[16:]):
            logits = inputs.logits(inputs.batch(batch))
            loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(data.labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, train.grad_clip)
            optimizer.step()
            losses.append(loss.item())
    return {n: p.detach().clone() for n, p in model.parameters.items()}, float(np.mean(losses))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scope", ["all", "last-2"])
def test_a_round_is_torch_s_and_peft_s(make_model, monkeypatch, data, optimizer, scope):
    plan = PLAN | {"train__optimizer": optimizer, "pet__scope": scope, "train__prefix_cache": False}
    ours = make_model(**plan)
    result = train_round(
        ours, data, StudyInputs(ours, data, ours.config.train), ours.initial_state(), 1, "north"
    )
    with monkeypatch.context() as patched:
        patched.setattr(fused, "FusedLinear", fused.PeftLinear)
        theirs = make_model(**plan)
    assert not any(type(m) is fused.FusedLinear for m in theirs.net.modules())
    tensors, loss = by_hand(theirs, data, StudyInputs(theirs, data, theirs.config.train))
    assert result.steps == 6
    assert result.loss == pytest.approx(loss, abs=1e-5)
    start = ours.initial_state().tensors
    for name, tensor in tensors.items():
        moved = (tensor - start[name]).norm()
        assert moved > 0
        assert (result.state.tensors[name] - tensor).norm() <= 2e-3 * moved


def test_a_repeated_round_gives_the_same_bits(make_model, data):
    model = make_model(**PLAN, lora__dropout=0.1)
    inputs = StudyInputs(model, data, model.config.train)
    one, two = (
        train_round(model, data, inputs, model.initial_state(), 3, "north").state.digest() for _ in range(2)
    )
    assert one == two
