"""A strategy is two pure functions, ``initial`` and ``apply``; the registry names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from common.adapter import AdapterState
from common.config import RunConfig
from common.errors import ConfigError
from common.sections import StrategyConfig
from server.strategies.fedadam import adam_step
from server.strategies.lora.error import aggregation_error
from server.strategies.lora.fedex import exact_residual
from server.strategies.mean import weighted_mean
from server.strategies.robust import median, trimmed, trimmed_mean
from server.update import Updates, named

_MEDIAN_OF = 3
"""Fewest sites of which a median leaves anything out."""
_MOST_SITES = 1001

Memory = dict[str, Tensor]
"""What a strategy keeps between rounds: named tensors, checkpointed with the adapter."""

Mean = Callable[[Updates, StrategyConfig], Tensor]

Step = Callable[[AdapterState, dict[str, Tensor], Memory, StrategyConfig], tuple[AdapterState, Memory]]


@dataclass(frozen=True)
class Aggregate:
    """The outcome of a round."""

    state: AdapterState
    memory: Memory
    lora_error: float | None
    """||M - M_applied|| / ||M|| over all adapted layers; None without LoRA, and where M, which is a
    weighted mean, is not what was meant."""
    mean: Tensor
    """``[numel]``: the mean update in float64, in wire order; fedadam makes its step of it, the others
    add it."""


def aggregate(state: AdapterState, updates: Updates, memory: Memory, config: RunConfig) -> Aggregate:
    """Fold a round's updates into the adapter, as far as the round trained it.

    Raises:
        SchemaError: if there is no update.
    """
    mean = MEANS[config.strategy.mean](updates, config.strategy)
    step = STEPS[config.strategy.name]
    after, memory = step(state, named(mean, updates.schema), memory, config.strategy)
    if config.pet.method != "lora" or config.strategy.mean != "weighted":
        return Aggregate(after, memory, None, mean)
    if config.lora.aggregation == "fedex":
        after = exact_residual(state, after, updates, config)
    return Aggregate(after, memory, aggregation_error(state, after, updates, config), mean)


def average_step(
    state: AdapterState, mean: dict[str, Tensor], memory: Memory, strategy: StrategyConfig
) -> tuple[AdapterState, Memory]:
    """Add the mean update (FedAvg; FedProx differs only at the sites)."""
    tensors = dict(state.tensors)
    for name, delta in mean.items():
        tensors[name] = (tensors[name].double() + delta).float()
    return AdapterState(tensors, state.residual), memory


MEANS: dict[str, Mean] = {
    "median": lambda updates, strategy: median(updates),
    "trimmed": lambda updates, strategy: trimmed_mean(updates, strategy.trim),
    "weighted": lambda updates, strategy: weighted_mean(updates),
}

STEPS: dict[str, Step] = {
    "fedadam": adam_step,
    "fedavg": average_step,
    "fedprox": average_step,
}


def check_strategy(config: RunConfig) -> None:
    """Refuse combinations that have no meaning.

    Raises:
        ConfigError: for fedadam on A and B jointly: an element-wise step on both factors is not
            a step on their product. For a robust mean beside fedex, whose residual brings back what
            the mean left out. For one that would leave out nobody in a round that just has its quorum.
    """
    joint = config.pet.method == "lora" and config.lora.aggregation in ("fedit", "fedex")
    if config.strategy.name == "fedadam" and joint:
        raise ConfigError(
            "strategy.name = 'fedadam' would scale A and B element-wise and jointly",
            found=f"lora.aggregation = {config.lora.aggregation!r}",
            fix="set lora.aggregation = 'ffa' or 'rolora', or strategy.name = 'fedavg'",
        )
    if config.strategy.mean != "weighted":
        _check_robust(config)


def _check_robust(config: RunConfig) -> None:
    mean, quorum = config.strategy.mean, config.rounds.quorum
    if config.pet.method == "lora" and config.lora.aggregation == "fedex":
        raise ConfigError(
            f"strategy.mean = {mean!r} and fedex contradict each other: its residual is the weighted mean "
            "of what every site sent, also of what the mean leaves out",
            found="lora.aggregation = 'fedex'",
            fix="set lora.aggregation = 'ffa', 'rolora' or 'fedit', or strategy.mean = 'weighted'",
        )
    if mean == "median" and quorum < _MEDIAN_OF:
        raise ConfigError(
            "strategy.mean = 'median' of two sites is their mean, and of one site that site's update",
            found=f"rounds.quorum = {quorum}",
            fix=f"set rounds.quorum = {_MEDIAN_OF} or more, or strategy.mean = 'weighted'",
        )
    if mean == "trimmed" and trimmed(quorum, config.strategy.trim) < 1:
        needed = next((n for n in range(3, _MOST_SITES) if trimmed(n, config.strategy.trim)), None)
        fix = f"set rounds.quorum = {needed} or more" if needed else "set strategy.trim = 0.1"
        raise ConfigError(
            "strategy.mean = 'trimmed' would leave out nobody in a round with just its quorum",
            found=f"strategy.trim = {config.strategy.trim:g}, rounds.quorum = {quorum}",
            fix=f"{fix}, or strategy.mean = 'weighted'",
        )
