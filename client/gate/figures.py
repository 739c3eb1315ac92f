"""What figures an answer may hold: their names by stage, and the kind, range, length and decimals of each.

Whatever is not spelled out here does not leave, whoever built it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from client.data.reasons import CAUSES
from client.gate.policy import MetricGroup, Policy
from common.config import RunConfig
from common.errors import EgressError
from common.metrics.histogram import CELLS
from common.metrics.platt import DECIMALS, MOST_LOGIT, SUMS
from common.protocol import (
    BIN_COUNTS,
    BIN_MEAN,
    BIN_SPAN,
    CODEC_ERROR,
    LABEL_COUNTS,
    OWN_MODEL,
    RELEASED,
    VALIDATION_COUNTS,
    VALIDATION_SHARES,
    Instruction,
    Value,
    validation_key,
)

MOST = 10_000_000
"""No site has more studies than this, and no round more steps or seconds."""


@dataclass(frozen=True)
class Rule:
    """What may stand under one key: whole numbers, or reals of some decimals, within a range."""

    low: float
    high: float
    decimals: int | None = None
    """None: a whole number."""
    length: int | None = None
    """None: one number; else a list of so many."""
    shorter: bool = False
    """Whether the list may also be shorter, though not empty."""
    needed: bool = False
    group: MetricGroup | None = None
    """Group the policy may withhold; None: without it the site cannot take part."""

    def check(self, key: str, value: object) -> None:
        """Refuse a value of another kind, length, range or precision.

        Raises:
            EgressError: if so.
        """
        if (self.length is not None) != isinstance(value, list):
            raise refused(key, "is a list" if isinstance(value, list) else "is not a list")
        values = value if isinstance(value, list) else [value]
        if self.length is not None and not self._least <= len(values) <= self.length:
            raise refused(key, f"has {len(values)} numbers, expected {self.length}")
        kind = int if self.decimals is None else float
        for number in values:
            if type(number) is not kind:
                raise refused(key, f"holds a {type(number).__name__}, expected {kind.__name__}")
            if not self.low <= number <= self.high:
                raise refused(key, f"is not within {self.low:g} to {self.high:g}")
            if self.decimals is not None and round(number, self.decimals) != number:
                raise refused(key, f"has more than {self.decimals} decimals")

    @property
    def _least(self) -> int:
        return 1 if self.shorter else self.length or 1


def rules_for(
    instruction: Instruction, config: RunConfig, policy: Policy, metrics: Mapping[str, Value]
) -> dict[str, Rule]:
    """Return key -> rule of every figure that an answer to this instruction may hold."""
    match instruction.stage:
        case "enrol":
            return _enrol_rules(config, metrics)
        case "pretrain":
            return _pretrain_rules(config, policy, metrics)
        case "train":
            return _train_rules(config, policy, metrics)
        case "local":
            return _local_rules(config, policy)
        case "evaluate":
            return _evaluate_rules(instruction, config, metrics)
        case "calibrate":
            return _calibrate_rules(config)
        case "personalise":
            return _personalise_rules(config)


def _enrol_rules(config: RunConfig, metrics: Mapping[str, Value]) -> dict[str, Rule]:
    count = Rule(0, MOST, needed=True)
    told: dict[str, Rule] = {f"{split}-studies": count for split in ("train", "validation", "test")}
    told["patients"] = count
    if config.pretrain.rounds:
        told["pretrain-studies"] = count
    told["owned"] = Rule(0, 1, length=len(config.data.findings), needed=True)
    if config.train.class_weights == "federated":
        studies = whole(metrics.get("train-studies"))
        told |= dict.fromkeys(LABEL_COUNTS, Rule(0, studies, length=len(config.data.findings), needed=True))
    aside = {reason: Rule(1, MOST, group="set-aside") for reason, cause in CAUSES.items() if cause.fault}
    return told | {f"quarantined.{reason}": rule for reason, rule in aside.items()}


def _pretrain_rules(config: RunConfig, policy: Policy, metrics: Mapping[str, Value]) -> dict[str, Rule]:
    examples, pretrain = whole(metrics.get("num-examples")), config.pretrain
    steps = pretrain.steps or pretrain.epochs * -(-examples // pretrain.batch_size)
    return {
        "num-examples": Rule(policy.training.min_studies, MOST, needed=True),
        "steps": Rule(steps, steps, needed=True),
        "loss": Rule(0, 1e6, decimals=6, group="training"),
        "seconds": Rule(0, MOST, decimals=3, group="training"),
        **_codec_rules(config),
    }


def _train_rules(config: RunConfig, policy: Policy, metrics: Mapping[str, Value]) -> dict[str, Rule]:
    examples = whole(metrics.get("num-examples"))
    steps = config.train.steps or config.train.epochs * -(-examples // config.train.batch_size)
    told = {
        "num-examples": Rule(policy.training.min_studies, MOST, needed=True),
        "labelled": Rule(0, examples, length=len(config.data.findings), needed=True),
        "steps": Rule(steps, steps, needed=True),
        "loss": Rule(0, 1e6, decimals=6, group="training"),
        "seconds": Rule(0, MOST, decimals=3, group="training"),
        "validation-auroc": Rule(0, 1, decimals=3, group="training"),
        **_codec_rules(config),
    }
    each = dict.fromkeys(VALIDATION_SHARES, Rule(0, 1, decimals=3, group="findings"))
    each |= dict.fromkeys(VALIDATION_COUNTS, Rule(0, MOST, group="findings"))
    for finding in config.data.findings:
        told |= {validation_key(finding, name): rule for name, rule in each.items()}
    return told


def _codec_rules(config: RunConfig) -> dict[str, Rule]:
    """Return the rule of what a codec loses of an update, where it loses anything."""
    if config.wire.codec == "fp32":
        return {}
    return {CODEC_ERROR: Rule(0, 1, decimals=6, group="training")}


def _local_rules(config: RunConfig, policy: Policy) -> dict[str, Rule]:
    train, rounds, pretrain = config.train, config.rounds.count, config.pretrain
    most = train.steps or train.epochs * -(-MOST // train.batch_size)
    before = pretrain.steps or pretrain.epochs * -(-MOST // pretrain.batch_size)
    told = {
        "steps": Rule(0, rounds * most + pretrain.rounds * before, needed=True),
        "rounds-kept": Rule(1, rounds, needed=True),
    }
    if config.evaluate.matrix and policy.answers.local_adapter:
        told["num-examples"] = Rule(policy.training.min_studies, MOST)
    return told


def _evaluate_rules(
    instruction: Instruction, config: RunConfig, metrics: Mapping[str, Value]
) -> dict[str, Rule]:
    share, se = Rule(0, 1, decimals=3), Rule(0, 1, decimals=4)
    interval, gain = Rule(0, 1, decimals=3, length=2), Rule(-1, 1, decimals=3, length=3)
    told = {
        "studies": Rule(0, MOST, needed=True),
        "macro-auroc": share,
        "macro-interval": interval,
        "macro-se": se,
        "pooled-ece": share,
        "gain.macro": gain,
        "gain-se.macro": se,
        f"gain.{RELEASED}": gain,
        f"gain-se.{RELEASED}": se,
    }
    count = Rule(0, whole(metrics.get("studies")), needed=True)
    each = {"positives": count, "negatives": count, "interval": interval}
    each |= dict.fromkeys(("auroc", "pr-auc", "prevalence", "ece", "brier"), share)
    each["mcc"] = Rule(-1, 1, decimals=3)
    each |= dict.fromkeys(BIN_COUNTS, dataclasses.replace(count, needed=False, length=CELLS, shorter=True))
    each[BIN_MEAN] = dataclasses.replace(share, length=CELLS, shorter=True)
    for finding in config.data.findings:
        own = {f"{finding}.{name}": rule for name, rule in each.items()}
        own |= {f"gain.{finding}": gain, f"gain-se.{finding}": se}
        told |= {key: dataclasses.replace(rule, group="findings") for key, rule in own.items()}
        if _pools(instruction, config):
            cells = Rule(0, CELLS, length=CELLS, shorter=True, group="histograms")
            told |= {f"{finding}.{name}": cells for name in BIN_SPAN}
    return told


def _pools(instruction: Instruction, config: RunConfig) -> bool:
    """Whether the ranking of all sites' studies together is asked for, of this model."""
    model = instruction.scaling is None and not instruction.arm.startswith(OWN_MODEL)
    return config.evaluate.pooled and model and instruction.split == "test"


def _calibrate_rules(config: RunConfig) -> dict[str, Rule]:
    if config.evaluate.calibrate == "none":
        return {}
    count = Rule(1, MOST, group="findings")
    most = MOST * MOST_LOGIT**2
    sums = Rule(-most, most, decimals=DECIMALS, length=len(SUMS), group="findings")
    each = {"positives": count, "negatives": count, "platt": sums}
    return {f"{finding}.{name}": rule for finding in config.data.findings for name, rule in each.items()}


def _personalise_rules(config: RunConfig) -> dict[str, Rule]:
    if config.personalise.method == "none":
        return {}
    share = Rule(0, 1, decimals=3, group="training")
    return {
        "kept": Rule(0, 1, needed=True),
        "steps": Rule(0, MOST, needed=True),
        "validation-auroc": share,
        "validation-before": share,
    }


def whole(value: object) -> int:
    """Return a count that another rule checks; anything else counts as none."""
    return value if type(value) is int and 0 <= value <= MOST else 0


def refused(key: str, why: str) -> EgressError:
    """Return the error that names a figure and what is wrong with it, without its value."""
    return EgressError(f"the figure {key} of an answer {why}")
