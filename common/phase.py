"""What a round is for, and which adapter tensors it trains and sends.

A run's rounds are counted from 1: first those of pretraining, then those of training, of which the first
``rounds.probe`` train the head alone. Within a phase the aggregation of LoRA may take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.adapter import AdapterSchema
from common.config import RunConfig

LORA_A, LORA_B = ".lora_A.", ".lora_B."

Kind = Literal["pretrain", "probe", "tune"]


@dataclass(frozen=True)
class Phase:
    """Where in a run a round stands."""

    kind: Kind
    number: int
    """Of the round within its phase, from 1."""
    rounds: int
    """Rounds of the phase."""


def phase_of(config: RunConfig, round_number: int) -> Phase:
    """Return the phase of a server round, which counts from 1 over the whole run.

    >>> config = RunConfig.build({"pretrain": {"rounds": 2}, "rounds": {"count": 5, "probe": 1}})
    >>> [phase_of(config, n).kind for n in range(1, 5)]
    ['pretrain', 'pretrain', 'probe', 'tune']
    """
    before, probe, count = config.pretrain.rounds, config.rounds.probe, config.rounds.count
    if round_number <= before:
        return Phase("pretrain", round_number, before)
    number = round_number - before
    return Phase("probe", number, probe) if number <= probe else Phase("tune", number - probe, count - probe)


def trained_names(schema: AdapterSchema, config: RunConfig, round_number: int) -> tuple[str, ...]:
    """Return the tensors a round trains, in schema order.

    Pretraining trains the encoder or the PET parameters, never the head; a probe trains the head and what
    stands beside it. ``ffa`` never trains A (Sun et al. 2024, section 4). ``rolora`` trains B in a phase's
    odd rounds and A in its even ones (Chen et al. 2024, alg. 1): B first, because B = 0 makes A's
    gradient zero.
    """
    phase = phase_of(config, round_number)
    anew = {*schema.head, *schema.fusion}
    tuned = schema.names if schema.tuned is None else schema.tuned
    if phase.kind == "probe":
        return tuple(name for name in schema.names if name in anew)
    if phase.kind == "pretrain" and config.pretrain.parameters == "encoder":
        return schema.encoder
    names = tuple(name for name in schema.names if name in tuned)
    if phase.kind == "pretrain":
        names = tuple(name for name in names if name not in anew)
    if config.pet.method != "lora" or config.lora.aggregation in ("fedit", "fedex"):
        return names
    frozen = LORA_A
    if config.lora.aggregation == "rolora" and phase.number % 2 == 0:
        frozen = LORA_B
    return tuple(name for name in names if frozen not in name)


def first_of_each_phase(config: RunConfig) -> list[int]:
    """Return the rounds that between them train whatever any round does: each phase's first two.

    >>> first_of_each_phase(RunConfig.build({"pretrain": {"rounds": 3}, "rounds": {"count": 4, "probe": 1}}))
    [1, 2, 4, 5, 6]
    """
    return [n for n in range(1, config.last_round + 1) if phase_of(config, n).number <= 2]


def trained_count(schema: AdapterSchema, config: RunConfig) -> int:
    """Return how many parameters training moves in any of its rounds; pretraining is not counted."""
    rounds = [n for n in first_of_each_phase(config) if phase_of(config, n).kind != "pretrain"]
    names = {name for number in rounds for name in trained_names(schema, config, number)}
    return schema.select(names).numel
