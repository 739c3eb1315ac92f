"""Which towers a run adapts, and what of its settings each of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.config import RunConfig
from common.errors import TargetError
from common.pet.registry import METHODS
from common.pet.targets import Cut, known_targets
from common.seeds import derive

VISION, TEXT = "vision", "text"


def is_adapted(config: RunConfig, tower: str) -> bool:
    """Whether PET goes into a tower."""
    return config.pet.towers in ("both", tower)


def tower_seed(config: RunConfig, tower: str) -> int:
    """Return what a tower's PET is drawn from: the vision tower's is the run's own."""
    return config.seed if tower == VISION else derive(config.seed, "pet", tower) % 2**31


def insert_towers(towers: Mapping[str, tuple[Any, Cut]], config: RunConfig) -> None:
    """Insert the run's method into each tower it adapts: a network, and how it is cut.

    ``pet.scope`` counts blocks in each. Of ``pet.targets`` each tower takes those it has, where there
    are two.

    Raises:
        TargetError: if a target names no layer of any adapted tower, or a tower has none of them.
    """
    adapted = {name: tower for name, tower in towers.items() if is_adapted(config, name)}
    shares = dict.fromkeys(adapted, config.pet.targets)
    if len(adapted) > 1:
        shares = {name: known_targets(*tower, config.pet) for name, tower in adapted.items()}
        _refuse_unknown(shares, config.pet.targets)
    for name, (net, cut) in adapted.items():
        own = {"seed": tower_seed(config, name)}
        pet = config.pet.model_copy(update={"targets": shares[name]})
        METHODS[config.pet.method](net, cut, config.model_copy(update={**own, "pet": pet}))


def _refuse_unknown(shares: Mapping[str, tuple[str, ...]], targets: tuple[str, ...]) -> None:
    known = {target for share in shares.values() for target in share}
    for target in targets:
        if target not in known:
            raise TargetError(
                f"pet.targets: {target!r} matches no layer of either encoder",
                fix="name layers as q, k, v, qkv, proj, fc1 or fc2, or leave pet.targets empty",
            )
    for name, share in shares.items():
        if targets and not share:
            other = VISION if name == TEXT else TEXT
            raise TargetError(
                f"pet.targets names no layer of the {name} encoder",
                found=", ".join(targets),
                fix=f"add one, or set pet.towers = {other!r}",
            )
