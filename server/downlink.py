"""What goes down: the change of a round in the plan's codec, to the sites that hold the adapter before it.

What is committed is what was sent: after a round the centre encodes the step it would make, takes the step
that arrives, and adds what the codec lost to the next one (DoubleSqueeze, Tang et al. 2019, alg. 1). So every
site, and the checkpoint, have the same bits, whether they were sent whole or as a change; what is owed lies
in the checkpoint beside the strategy's memory.

Who holds what is known of sites that answered since this process began. All others, and those that have lost
it, are sent the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.adapter import AdapterSchema, AdapterState
from common.codec import adapter_digest, decode, downward, encode
from common.config import RunConfig
from common.errors import ConfigError
from common.protocol import (
    CALIBRATED,
    FEDERATED,
    OWN_BIAS,
    PERSONALISED,
    ROUND_STAGES,
    TEMPERATURE,
    WITHOUT,
    Instruction,
)
from common.sections import WireConfig
from server.line import Line

OWED = "owed:"
"""Begins the names of what the strategy's memory holds of the downlink."""
_OF_RELEASED = frozenset({FEDERATED, PERSONALISED, CALIBRATED, TEMPERATURE, OWN_BIAS, *WITHOUT.values()})
"""Arms that are measured with the released adapter."""


@dataclass(frozen=True)
class Broadcast:
    """A round's outcome as every site will have it."""

    state: AdapterState
    memory: dict[str, Tensor]
    change: NDArray[Any] | None
    """What leads from the state before to this one, encoded; None where the whole is sent."""


def broadcast(
    before: AdapterState,
    after: AdapterState,
    memory: Mapping[str, Tensor],
    schema: AdapterSchema,
    wire: WireConfig,
) -> Broadcast:
    """Return the state that arrives where ``after`` was to; ``schema`` is of the tensors the round trained.

    ``memory`` holds what is owed from earlier rounds. A step that is not finite is not encoded.
    """
    down = downward(wire)
    if down.codec == "fp32":
        return Broadcast(after, dict(memory), None)
    step = {name: after.tensors[name] - before.tensors[name] for name in schema.names}
    owed = {name: memory[f"{OWED}{name}"] for name in step if f"{OWED}{name}" in memory}
    wanted = schema.pack({name: step[name] + owed.get(name, 0.0) for name in step})
    change = encode(wanted, down)
    arrived = decode(change, down, wanted.size)
    if not np.isfinite(arrived).all():
        return Broadcast(after, dict(memory), None)
    kept = dict(memory)
    if wire.feedback:
        left = schema.unpack(wanted - arrived)
        kept |= {f"{OWED}{name}": tensor for name, tensor in left.items()}
    return Broadcast(before.plus(schema.unpack(arrived)), kept, change)


def check_downlink(config: RunConfig) -> None:
    """Refuse a downlink that would undo what an aggregation is for.

    Raises:
        ConfigError: for fedex, whose residual is exact only beside the very factors it was made for.
    """
    exact = config.pet.method == "lora" and config.lora.aggregation == "fedex"
    if exact and config.wire.downlink != "fp32":
        raise ConfigError(
            "wire.downlink would round the factors that lora.aggregation = 'fedex' keeps a residual of",
            found=f"wire.downlink = {config.wire.downlink!r}",
            fix="set wire.downlink = 'fp32', or lora.aggregation = 'rolora'",
        )


class Downlink:
    """Which adapter each site holds, and how the newest differs from the one before."""

    def __init__(self, wire: WireConfig) -> None:
        self._on = wire.downlink != "fp32"
        self._held: dict[str, str] = {}
        self._step: tuple[str, str, NDArray[Any]] | None = None

    def stepped(self, before: NDArray[Any], after: NDArray[Any], change: NDArray[Any] | None) -> None:
        """Remember the change of a committed round, given the flat adapters around it."""
        if change is not None:
            self._step = (adapter_digest(before), adapter_digest(after), change)

    def naming(self, instruction: Instruction) -> Instruction:
        """Return an instruction that names the adapter it carries, where sites are to hold that."""
        held = instruction.stage in (*ROUND_STAGES, "calibrate", "personalise")
        held = held or (instruction.stage == "evaluate" and instruction.arm in _OF_RELEASED)
        if not (self._on and held) or instruction.adapter is None:
            return instruction
        named, numel = adapter_digest(instruction.adapter), instruction.adapter.size
        return dataclasses.replace(instruction, named=named, numel=numel)

    def to(self, site: str, instruction: Instruction) -> Instruction:
        """Return what of an instruction a site needs: its name, the change, or all of it."""
        held = self._held.get(site)
        if not instruction.named or held is None:
            return instruction
        if held == instruction.named:
            return dataclasses.replace(instruction, adapter=None)
        if instruction.stage in ROUND_STAGES and self._step and self._step[:2] == (held, instruction.named):
            return dataclasses.replace(instruction, adapter=None, change=self._step[2])
        return instruction

    def answered(self, site: str, instruction: Instruction) -> None:
        """Remember that a site has what it was asked with."""
        if instruction.named:
            self._held[site] = instruction.named

    def lost(self, site: str) -> bool:
        """Forget what a site held; returns whether that was more than nothing."""
        return self._held.pop(site, None) is not None


class Addressed(Line):
    """A line on which each node gets an instruction of its own."""

    def __init__(self, line: Line, address: Callable[[Instruction, int], Instruction]) -> None:
        super().__init__(line.grid)
        self._line, self._address = line, address

    @property
    def poll(self) -> float:  # type: ignore[override]
        """As the line's own."""
        return self._line.poll

    @property
    def steady(self) -> bool:  # type: ignore[override]
        """As the line's own."""
        return self._line.steady

    def present(self) -> list[int]:
        """As the line's own."""
        return self._line.present()

    def admitted(self) -> Mapping[int, str]:
        """As the line's own."""
        return self._line.admitted()

    def seal(self, instruction: Instruction, node: int) -> Instruction:
        """Seal what this node is to get."""
        return self._line.seal(self._address(instruction, node), node)

    def push(self, message: Any) -> str | None:
        """As the line's own."""
        return self._line.push(message)

    def pull(self, ids: Sequence[str]) -> list[Any]:
        """As the line's own."""
        return self._line.pull(ids)

    def silent(self) -> float:
        """As the line's own."""
        return self._line.silent()
