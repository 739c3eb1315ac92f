"""Which adapter tensors a round trains and sends: all of them, unless the aggregation takes turns."""

from __future__ import annotations

from common.adapter import AdapterSchema
from common.config import RunConfig

LORA_A, LORA_B = ".lora_A.", ".lora_B."


def trained_names(schema: AdapterSchema, config: RunConfig, round_number: int) -> tuple[str, ...]:
    """Return the tensors a round trains, in schema order; server rounds count from 1.

    ``ffa`` never trains A (Sun et al. 2024, section 4). ``rolora`` trains B in odd rounds and A in
    even ones (Chen et al. 2024, alg. 1): B first, because B = 0 makes A's gradient zero.
    """
    if config.pet.method != "lora" or config.lora.aggregation in ("fedit", "fedex"):
        return schema.names
    frozen = LORA_A
    if config.lora.aggregation == "rolora" and round_number % 2 == 0:
        frozen = LORA_B
    return tuple(name for name in schema.names if frozen not in name)


def trained_count(schema: AdapterSchema, config: RunConfig) -> int:
    """Return how many parameters a run trains in any of its rounds."""
    names = {n for round_number in (1, 2) for n in trained_names(schema, config, round_number)}
    return schema.select(names).numel
