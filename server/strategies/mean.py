"""The weighted mean of updates, row by row where sites annotate different findings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from common.adapter import AdapterSchema
from common.errors import SchemaError
from server.update import SiteUpdate


def weighted_mean(updates: Iterable[SiteUpdate], schema: AdapterSchema) -> dict[str, Tensor]:
    """Average updates, each site weighted by its number of examples (McMahan et al. 2017, alg. 1).

    A head row l is averaged over the sites that annotate finding l: sum_i n_il d_il / sum_i n_il.
    A row nobody annotates gets exactly zero. Sums run in float64 one site at a time, so memory
    does not grow with the federation; the result is float64.

    >>> import numpy as np
    >>> from common.adapter import AdapterSchema
    >>> a = SiteUpdate("a", 1, np.array([1]), {"w": torch.tensor([0.0])})
    >>> b = SiteUpdate("b", 3, np.array([3]), {"w": torch.tensor([4.0])})
    >>> weighted_mean([a, b], AdapterSchema((("w", (1,)),)))
    {'w': tensor([3.], dtype=torch.float64)}

    Raises:
        SchemaError: if no site replied or an update's names differ from the schema's.
    """
    sums = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in schema.shapes}
    weights = {n: torch.zeros((), dtype=torch.float64) for n in schema.names}
    replied = False
    for update in updates:
        schema.check(dict(update.delta))
        replied = True
        for name in schema.names:
            weight = _weight(update, name, schema)
            sums[name] += _rows(weight, sums[name]) * update.delta[name].double()
            weights[name] = weights[name] + weight
    if not replied:
        raise SchemaError("there is no update to average")
    means: dict[str, Tensor] = {}
    for name, total in sums.items():
        weight = _rows(weights[name], total)
        means[name] = torch.where(weight > 0, total / weight.clamp(min=1), torch.zeros_like(total))
    return means


def _weight(update: SiteUpdate, name: str, schema: AdapterSchema) -> Tensor:
    if name in schema.head:
        return torch.from_numpy(update.labelled).double()
    return torch.tensor(float(update.num_examples), dtype=torch.float64)


def _rows(weight: Tensor, like: Tensor) -> Tensor:
    return weight.reshape(-1, *[1] * (like.ndim - 1)) if weight.ndim else weight
