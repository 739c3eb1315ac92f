"""The report's part on how the last mean was made, and how far the adapter went."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, model_validator

from server.report_run import Name, Part, Share

Cosine = Annotated[float, Field(ge=-1, le=1)]
Length = Annotated[float, Field(ge=0)]


class DriftPart(Part):
    """How far each part of the adapter was, after each round, from where the run began."""

    blocks: tuple[Name, ...]
    """Parts of the adapter in the order of the network."""
    rounds: tuple[NonNegativeInt, ...]
    """Rounds in order."""
    values: tuple[tuple[Length | None, ...], ...]
    """One list for each round: L2 distance of each block."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if [len(row) for row in self.values] != [len(self.blocks)] * len(self.rounds):
            raise ValueError(f"expected {len(self.rounds)} lists of {len(self.blocks)} distances")
        return self


class AggregationPart(Part):
    """How the updates of the last round with a mean became one."""

    round: NonNegativeInt
    """Number of the round."""
    weights: dict[Name, Share]
    """Site to its share of the mean."""
    norms: dict[Name, Length]
    """Site to the L2 norm of its update."""
    cosines: dict[Name, Cosine]
    """Site to the cosine of its update with the aggregate; absent where one of them is zero."""
    pairs: tuple[tuple[Cosine, ...], ...]
    """Cosines of the sites' updates with each other, a list for each site of `weights` by name; empty:
    too many sites, or not kept."""
    drift: DriftPart | None
    """Distances from the start; `null`: not kept."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = len(self.weights)
        if self.pairs and [len(row) for row in self.pairs] != [count] * count:
            raise ValueError(f"expected {count} lists of {count} cosines")
        return self
