"""The report's part on how a round's updates became one, and how far the adapter went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from server.facts.records import Aggregation
from server.report_run import Name, Part, Share

MOST_ROUNDS = 40
"""Rounds that the drift is told of: enough to draw, however long the run was."""

Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Distance = Annotated[float, Field(ge=0)]


class DriftPart(Part):
    """How far each part of the adapter lies from where the run began."""

    round: PositiveInt
    """Round after which it was measured."""
    blocks: dict[Name, Distance]
    """Part of the adapter to the L2 norm of its change since the start of the run."""


class AggregationPart(Part):
    """How the updates of the last round that has a mean became one."""

    round: PositiveInt
    """Number of that round."""
    weights: dict[Name, Share]
    """Site to its share of the mean."""
    norms: dict[Name, Distance]
    """Site to the L2 norm of its update; a site it is not known of is absent."""
    cosines: dict[Name, Cosine]
    """Site to the cosine of its update with the aggregate; a site it is not known of is absent."""
    blocks: tuple[Name, ...]
    """Parts of the adapter in the order of the network."""
    drift: tuple[DriftPart, ...]
    """The adapter over the rounds, at most 40 of them, evenly chosen, the last always; empty: not
    measured."""


def build_aggregation(found: Aggregation | None) -> AggregationPart | None:
    """Lay out a round's facts; None where nothing was averaged."""
    if found is None:
        return None
    return AggregationPart(
        round=found.round,
        weights=found.weights,
        norms=_finite(found.norms),
        cosines=_finite(found.cosines),
        blocks=found.drift_blocks,
        drift=tuple(
            DriftPart(
                round=found.drift_rounds[place],
                blocks=_finite(dict(zip(found.drift_blocks, found.drift[place], strict=True))),
            )
            for place in _even(found.drift_rounds)
        ),
    )


def _even(rounds: Sequence[int]) -> list[int]:
    """Return at most `MOST_ROUNDS` places, evenly spaced and ending with the last."""
    step = -(-len(rounds) // MOST_ROUNDS)
    return [*range(len(rounds) - 1, -1, -step)][::-1] if rounds else []


def _finite(values: dict[str, float] | dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def as_facts(part: AggregationPart) -> Aggregation:
    """Return what figures and their words are made of."""
    return Aggregation(
        round=part.round,
        weights=part.weights,
        norms=part.norms,
        cosines=part.cosines,
        pairs=(),
        lora_error=(),
        drift_blocks=part.blocks,
        drift_rounds=tuple(entry.round for entry in part.drift),
        drift=tuple(tuple(entry.blocks.get(block) for block in part.blocks) for entry in part.drift),
    )
