"""What a round changed, as it goes down: nothing is lost for good, and nobody is sent what he cannot use."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from common.adapter import AdapterSchema, AdapterState
from common.codec import adapter_digest, decode, downward
from common.protocol import Instruction
from common.sections import WireConfig
from server.downlink import OWED, Downlink, broadcast

SCHEMA = AdapterSchema((("a", (200,)), ("head", (2, 64))), ("head",))
INT8, FP16 = WireConfig(downlink="int8"), WireConfig(downlink="fp16")


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SCHEMA.shapes}


def state(seed: int) -> AdapterState:
    return AdapterState(drawn(seed), {})


def test_in_fp32_nothing_is_done() -> None:
    before, after = state(0), state(1)
    sent = broadcast(before, after, {"m:a": torch.zeros(1)}, SCHEMA, WireConfig())
    assert sent.state is after and sent.change is None and set(sent.memory) == {"m:a"}


@pytest.mark.parametrize("wire", [FP16, INT8])
def test_what_arrives_and_what_is_owed_are_what_was_to_be_done(wire: WireConfig) -> None:
    """After any number of rounds the sites lag behind the steps by what is owed, and by nothing else."""
    now, wanted, memory = state(0), state(0).tensors, {"m:a": torch.ones(3)}
    for number in range(1, 6):
        step = {name: 0.1 * tensor for name, tensor in drawn(number).items()}
        wanted = {name: wanted[name] + step[name] for name in wanted}
        sent = broadcast(now, now.plus(step), memory, SCHEMA, wire)
        assert sent.change is not None
        arrived = SCHEMA.unpack(decode(sent.change, downward(wire), SCHEMA.numel))
        for name in SCHEMA.names:
            assert torch.equal(sent.state.tensors[name], now.tensors[name] + arrived[name])
        now, memory = sent.state, sent.memory
        for name in SCHEMA.names:
            lag = wanted[name] - now.tensors[name]
            assert torch.allclose(lag, memory[f"{OWED}{name}"], atol=1e-6)
            assert 0 < float(lag.abs().max()) < 0.01
    assert torch.equal(memory["m:a"], torch.ones(3))


def test_without_feedback_nothing_is_owed() -> None:
    wire = WireConfig(downlink="int8", feedback=False)
    assert broadcast(state(0), state(1), {}, SCHEMA, wire).memory == {}


def test_what_nobody_trained_stays_bit_identical() -> None:
    before = state(0)
    step = drawn(1)
    step["head"][1] = 0.0
    sent = broadcast(before, before.plus(step), {}, SCHEMA, INT8)
    assert torch.equal(sent.state.tensors["head"][1], before.tensors["head"][1])
    only = SCHEMA.select(["head"])
    part = broadcast(before, before.plus({"head": step["head"]}), sent.memory, only, INT8)
    assert torch.equal(part.state.tensors["a"], before.tensors["a"])
    assert torch.equal(part.memory[f"{OWED}a"], sent.memory[f"{OWED}a"])


def test_a_step_that_is_not_finite_is_not_encoded() -> None:
    after = state(1)
    after.tensors["a"][0] = torch.inf
    sent = broadcast(state(0), after, {}, SCHEMA, INT8)
    assert sent.change is None and sent.state is after


# ---------------------------------------------------------------------- who is sent what

FIRST, SECOND = (SCHEMA.pack(state(n).tensors) for n in (0, 1))
CHANGE = np.zeros(9, dtype=np.uint8)


def asking(adapter: np.ndarray, stage: str = "train", arm: str = "") -> Instruction:
    return Instruction(stage, "p", "c", "b", round=2, adapter=adapter, arm=arm)  # type: ignore[arg-type]


def test_whoever_answered_the_round_before_gets_the_change() -> None:
    line = Downlink(INT8)
    first = line.naming(asking(FIRST))
    assert first.named == adapter_digest(FIRST) and first.numel == FIRST.size
    assert line.to("north", first) == first
    line.answered("north", first)
    line.stepped(FIRST, SECOND, CHANGE)
    second = line.naming(asking(SECOND))
    sent = line.to("north", second)
    assert sent.adapter is None and sent.change is CHANGE and sent.named == adapter_digest(SECOND)
    assert line.to("east", second).adapter is SECOND
    line.answered("north", second)
    again = line.to("north", second)
    assert again.adapter is None and again.change is None
    assert line.to("north", first).adapter is FIRST
    assert line.lost("north") and not line.lost("north")
    assert line.to("north", second).adapter is SECOND


def test_a_change_belongs_to_a_round() -> None:
    line = Downlink(INT8)
    line.answered("north", line.naming(asking(FIRST)))
    line.stepped(FIRST, SECOND, CHANGE)
    assert line.to("north", line.naming(asking(SECOND, "evaluate", "federated"))).adapter is SECOND


@pytest.mark.parametrize(
    ("stage", "arm", "named"),
    [
        ("pretrain", "", True),
        ("calibrate", "", True),
        ("personalise", "", True),
        ("evaluate", "federated", True),
        ("evaluate", "without-text", True),
        ("evaluate", "local:north", False),
        ("evaluate", "pooled", False),
        ("local", "", False),
    ],
)
def test_sites_hold_the_released_adapter_and_no_other(stage: str, arm: str, named: bool) -> None:
    assert bool(Downlink(INT8).naming(asking(FIRST, stage, arm)).named) is named


def test_in_fp32_nothing_is_named() -> None:
    line, asked = Downlink(WireConfig()), asking(FIRST)
    assert line.naming(asked) == asked
    assert line.to("north", dataclasses.replace(asked)).adapter is FIRST
