"""Where training stands: how long its validation has not become better, and what follows from that.

The plateau rule lowers the learning rate, patience ends a run early. Both read what is committed with each
round, so a resumed run decides as the one that was broken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from common.config import RunConfig
from common.phase import phase_of

FALL = 0.1
"""Factor on the learning rate after a plateau."""


@dataclass(frozen=True)
class Pace:
    """After a round: the best mean validation AUROC so far, and the learning rate's share."""

    best: float = -1.0
    waited: int = 0
    """Rounds since the best one."""
    since_fall: int = 0
    """Rounds since the best one, or since the learning rate fell."""
    learning_rate: float = 1.0
    """Share of the plan's learning rate."""


def pace_of(record: Mapping[str, Any] | None) -> Pace:
    """Return the pace a round was committed with; the beginning's for None."""
    return Pace(**record.get("pace", {})) if record else Pace()


def keep_pace(pace: Pace, config: RunConfig, round_number: int, scores: Mapping[str, float]) -> Pace:
    """Take in what the sites say of the adapter they received in a round.

    ``scores`` are mean validation AUROCs by site, each counting the same. They are of the adapter after the
    round before, and count only if that round trained: what pretraining leaves has no head yet.

    >>> config = RunConfig.build({"train": {"schedule": "plateau", "plateau_patience": 1}})
    >>> pace = Pace()
    >>> for number, score in enumerate([0.5, 0.7, 0.7], start=2):
    ...     pace = keep_pace(pace, config, number, {"north": score})
    >>> pace.waited, round(pace.learning_rate, 3)
    (1, 0.1)
    """
    if not scores or round_number < 2 or phase_of(config, round_number - 1).kind == "pretrain":
        return pace
    score = sum(scores.values()) / len(scores)
    if score > pace.best:
        return replace(pace, best=score, waited=0, since_fall=0)
    later = replace(pace, waited=pace.waited + 1, since_fall=pace.since_fall + 1)
    if config.train.schedule == "plateau" and later.since_fall >= config.train.plateau_patience:
        return replace(later, since_fall=0, learning_rate=later.learning_rate * FALL)
    return later


def is_over(pace: Pace, config: RunConfig) -> bool:
    """Whether a run has waited for a better round as long as its plan allows."""
    return bool(config.rounds.patience) and pace.waited >= config.rounds.patience
