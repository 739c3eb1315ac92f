"""A strategy is two pure functions, ``initial`` and ``apply``; the registry names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from common.adapter import AdapterSchema, AdapterState
from common.config import RunConfig
from common.errors import ConfigError
from common.sections import StrategyConfig
from server.strategies.fedadam import adam_step
from server.strategies.lora.error import aggregation_error
from server.strategies.lora.fedex import exact_residual
from server.strategies.mean import weighted_mean
from server.update import SiteUpdate

Memory = dict[str, Tensor]
"""What a strategy keeps between rounds: named tensors, checkpointed with the adapter."""

Step = Callable[[AdapterState, dict[str, Tensor], Memory, StrategyConfig], tuple[AdapterState, Memory]]


@dataclass(frozen=True)
class Aggregate:
    """The outcome of a round."""

    state: AdapterState
    memory: Memory
    lora_error: float | None
    """||M - M_applied|| / ||M|| over all adapted layers; None without LoRA."""
    mean: dict[str, Tensor]
    """The mean update in float64; fedadam makes its step of it, the others add it."""


def aggregate(
    state: AdapterState,
    updates: Sequence[SiteUpdate],
    schema: AdapterSchema,
    memory: Memory,
    config: RunConfig,
) -> Aggregate:
    """Fold a round's updates into the adapter; ``schema`` names the tensors the round trained.

    Updates are taken in site order, so who answered first changes nothing.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    mean = weighted_mean(ordered, schema)
    after, memory = STEPS[config.strategy.name](state, mean, memory, config.strategy)
    if config.pet.method != "lora":
        return Aggregate(after, memory, None, mean)
    if config.lora.aggregation == "fedex":
        after = exact_residual(state, after, ordered, config)
    return Aggregate(after, memory, aggregation_error(state, after, ordered, config), mean)


def average_step(
    state: AdapterState, mean: dict[str, Tensor], memory: Memory, strategy: StrategyConfig
) -> tuple[AdapterState, Memory]:
    """Add the mean update (FedAvg; FedProx differs only at the sites)."""
    tensors = dict(state.tensors)
    for name, delta in mean.items():
        tensors[name] = (tensors[name].double() + delta).float()
    return AdapterState(tensors, state.residual), memory


STEPS: dict[str, Step] = {
    "fedadam": adam_step,
    "fedavg": average_step,
    "fedprox": average_step,
}


def check_strategy(config: RunConfig) -> None:
    """Refuse combinations that have no meaning.

    Raises:
        ConfigError: for fedadam on A and B jointly: an element-wise step on both factors is not
            a step on their product.
    """
    joint = config.pet.method == "lora" and config.lora.aggregation in ("fedit", "fedex")
    if config.strategy.name == "fedadam" and joint:
        raise ConfigError(
            "strategy.name = 'fedadam' would scale A and B element-wise and jointly",
            found=f"lora.aggregation = {config.lora.aggregation!r}",
            fix="set lora.aggregation = 'ffa' or 'rolora', or strategy.name = 'fedavg'",
        )
