"""Aggregate updates that are at hand, as a round does those of its spool."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from common.adapter import AdapterSchema, AdapterState
from common.config import RunConfig
from server.spool import Spool
from server.strategies.mean import weighted_mean
from server.strategies.strategy import Aggregate, Memory, aggregate
from server.update import SiteUpdate, named


def fold(
    state: AdapterState,
    updates: Iterable[SiteUpdate],
    schema: AdapterSchema,
    memory: Memory,
    config: RunConfig,
) -> Aggregate:
    """Fold updates into an adapter."""
    return aggregate(state, Spool.of(updates, schema), memory, config)


def mean_of(updates: Iterable[SiteUpdate], schema: AdapterSchema) -> dict[str, Tensor]:
    """Return the weighted mean by name."""
    return named(weighted_mean(Spool.of(updates, schema)), schema)
