"""The gate on the way out: an answer leaves if every name, shape, range and decimal in it is known.

What each stage may send is spelled out below. Whatever is not there is refused, whoever built it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.data.reasons import CAUSES
from client.gate.policy import MetricGroup, Policy
from client.site import SiteConfig
from common.codec import DTYPES
from common.config import RunConfig
from common.errors import EgressError, FedcxrError
from common.protocol import Answer, Instruction, Value

MOST = 10_000_000
"""No site has more studies than this, and no round more steps or seconds."""


def _codes(kind: type[FedcxrError]) -> Iterator[str]:
    yield kind.code
    for child in kind.__subclasses__():
        yield from _codes(child)


CODES = frozenset(_codes(FedcxrError))
"""Every code an answer may carry."""


@dataclass(frozen=True)
class Rule:
    """What may stand under one key: whole numbers, or reals of some decimals, within a range."""

    low: float
    high: float
    decimals: int | None = None
    """None: a whole number."""
    length: int | None = None
    """None: one number; else a list of so many."""
    needed: bool = False
    group: MetricGroup | None = None
    """Group the policy may withhold; None: without it the site cannot take part."""

    def check(self, key: str, value: object) -> None:
        """Refuse a value of another kind, length, range or precision.

        Raises:
            EgressError: if so.
        """
        if (self.length is not None) != isinstance(value, list):
            raise _refused(key, "is a list" if isinstance(value, list) else "is not a list")
        values = value if isinstance(value, list) else [value]
        if self.length is not None and len(values) != self.length:
            raise _refused(key, f"has {len(values)} numbers, expected {self.length}")
        kind = int if self.decimals is None else float
        for number in values:
            if type(number) is not kind:
                raise _refused(key, f"holds a {type(number).__name__}, expected {kind.__name__}")
            if not self.low <= number <= self.high:
                raise _refused(key, f"is not within {self.low:g} to {self.high:g}")
            if self.decimals is not None and round(number, self.decimals) != number:
                raise _refused(key, f"has more than {self.decimals} decimals")


def check_answer(
    answer: Answer, instruction: Instruction, config: RunConfig, policy: Policy, site: SiteConfig
) -> None:
    """Refuse an answer that holds anything but what its stage may send.

    Raises:
        EgressError: naming the key or the record and what is wrong with it, without its value.
    """
    if answer.site != site.name:
        raise EgressError("an answer names another site than this one")
    if answer.code:
        if answer.code not in CODES:
            raise EgressError("an answer carries a code that fedcxr does not have")
        if answer.update is not None or answer.metrics:
            raise EgressError("an answer carries a code and something else")
        return
    if instruction.stage not in policy.asked.stages:
        raise EgressError(f"policy.toml lets no answer to {instruction.stage} leave")
    _check_metrics(answer.metrics, instruction, config, policy, site)
    _check_update(answer, instruction, config, policy)
    size = answer_bytes(answer)
    if size > policy.answers.max_bytes:
        raise EgressError(
            "an answer is larger than policy.toml allows",
            found=f"{size} bytes, answers.max_bytes = {policy.answers.max_bytes}",
        )


def withhold(answer: Answer, instruction: Instruction, config: RunConfig, policy: Policy) -> Answer:
    """Return the answer without the figures that policy.toml keeps here (``answers.metrics``).

    Whoever calls this before `check_answer` must have checked the whole answer first: a mean is
    safe only if the cells behind it are large enough. See `release`.
    """
    rules = _rules(instruction, config, policy, answer.metrics)
    kept = {
        key: value
        for key, value in answer.metrics.items()
        if key not in rules or rules[key].group in (None, *policy.answers.metrics)
    }
    return dataclasses.replace(answer, metrics=kept)


def release(
    answer: Answer, instruction: Instruction, config: RunConfig, policy: Policy, site: SiteConfig
) -> Answer:
    """Return what of an answer may leave: the whole is checked, then what the policy withholds taken out.

    Raises:
        EgressError: as `check_answer`.
    """
    answers = policy.answers.model_copy(update={"metrics": ("set-aside", "training", "findings")})
    check_answer(answer, instruction, config, policy.model_copy(update={"answers": answers}), site)
    return answer if answer.code else withhold(answer, instruction, config, policy)


def describe(answer: Answer) -> dict[str, Any]:
    """Return what an answer holds, record by record, for the audit's line: ``records=describe(answer)``.

    Numbers stand there as they leave; of an update its shape, number format, bytes and SHA-256.
    """
    records: dict[str, Any] = {"site": {"name": answer.site, "code": answer.code}}
    if answer.update is not None:
        update = np.ascontiguousarray(answer.update)
        records["update"] = {
            "shape": list(update.shape),
            "dtype": str(update.dtype),
            "bytes": int(update.nbytes),
            "sha256": hashlib.sha256(update.data).hexdigest(),
        }
    if answer.metrics:
        records["metrics"] = dict(answer.metrics)
    return records


def answer_bytes(answer: Answer) -> int:
    """Return about how many bytes an answer takes before Flower wraps it."""
    update = 0 if answer.update is None else int(answer.update.nbytes)
    return update + len(json.dumps(dict(answer.metrics)))


def _check_metrics(
    metrics: Mapping[str, Value],
    instruction: Instruction,
    config: RunConfig,
    policy: Policy,
    site: SiteConfig,
) -> None:
    rules = _rules(instruction, config, policy, metrics)
    for key, value in metrics.items():
        if key not in rules:
            raise EgressError(f"an answer to {instruction.stage} holds a figure that it may not hold")
        if rules[key].group not in (None, *policy.answers.metrics):
            raise _refused(key, f"is of the group {rules[key].group}, which answers.metrics withholds")
        rules[key].check(key, value)
    missing = [
        key
        for key, rule in rules.items()
        if rule.needed and key not in metrics and rule.group in (None, *policy.answers.metrics)
    ]
    if missing:
        raise _refused(missing[0], "is missing")
    if instruction.stage == "evaluate" and "findings" in policy.answers.metrics:
        floor = max(site.evaluate.min_cell, policy.answers.min_cell)
        _check_cells(metrics, config.data.findings, floor)


def _rules(
    instruction: Instruction, config: RunConfig, policy: Policy, metrics: Mapping[str, Value]
) -> dict[str, Rule]:
    match instruction.stage:
        case "enrol":
            return _enrol_rules(config)
        case "train":
            return _train_rules(config, policy, metrics)
        case "local":
            return _local_rules(config)
        case "evaluate":
            return _evaluate_rules(config, metrics)


def _enrol_rules(config: RunConfig) -> dict[str, Rule]:
    count = Rule(0, MOST, needed=True)
    told: dict[str, Rule] = {f"{split}-studies": count for split in ("train", "validation", "test")}
    told["patients"] = count
    told["owned"] = Rule(0, 1, length=len(config.data.findings), needed=True)
    aside = {reason: Rule(1, MOST, group="set-aside") for reason, cause in CAUSES.items() if cause.fault}
    return told | {f"quarantined.{reason}": rule for reason, rule in aside.items()}


def _train_rules(config: RunConfig, policy: Policy, metrics: Mapping[str, Value]) -> dict[str, Rule]:
    examples = _whole(metrics.get("num-examples"))
    steps = config.train.steps or config.train.epochs * -(-examples // config.train.batch_size)
    return {
        "num-examples": Rule(policy.training.min_studies, MOST, needed=True),
        "labelled": Rule(0, examples, length=len(config.data.findings), needed=True),
        "steps": Rule(steps, steps, needed=True),
        "loss": Rule(0, 1e6, decimals=6, group="training"),
        "seconds": Rule(0, MOST, decimals=3, group="training"),
        "validation-auroc": Rule(0, 1, decimals=3, group="training"),
    }


def _local_rules(config: RunConfig) -> dict[str, Rule]:
    train, rounds = config.train, config.rounds.count
    most = train.steps or train.epochs * -(-MOST // train.batch_size)
    return {
        "steps": Rule(rounds * train.steps, rounds * most, needed=True),
        "rounds-kept": Rule(1, rounds, needed=True),
    }


def _evaluate_rules(config: RunConfig, metrics: Mapping[str, Value]) -> dict[str, Rule]:
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
    }
    count = Rule(0, _whole(metrics.get("studies")), needed=True)
    each = {"positives": count, "negatives": count, "interval": interval}
    each |= dict.fromkeys(("auroc", "pr-auc", "prevalence", "ece", "brier"), share)
    for finding in config.data.findings:
        own = {f"{finding}.{name}": rule for name, rule in each.items()}
        own |= {f"gain.{finding}": gain, f"gain-se.{finding}": se}
        told |= {key: dataclasses.replace(rule, group="findings") for key, rule in own.items()}
    return told


def _check_cells(metrics: Mapping[str, Value], findings: tuple[str, ...], floor: int) -> None:
    """Refuse results of a finding that too few studies have, or lack, and means that rest on none other."""
    told = ranked = 0
    for finding in findings:
        positives, negatives = (_whole(metrics[f"{finding}.{side}"]) for side in ("positives", "negatives"))
        if positives + negatives > _whole(metrics["studies"]):
            raise _refused(f"{finding}.positives", "and negatives are more than the studies")
        present = {key for key in metrics if key.startswith(f"{finding}.")}
        present |= {key for key in (f"gain.{finding}", f"gain-se.{finding}") if key in metrics}
        results = present - {f"{finding}.positives", f"{finding}.negatives"}
        if positives == negatives == 0:
            if results:
                raise _refused(min(results), "is a result of a finding that nobody has or lacks")
            continue
        if min(positives, negatives) < floor and floor > 1:
            raise _refused(f"{finding}.positives", f"or negatives are fewer than {floor}")
        told += 1
        ranked += positives > 0 < negatives
        if min(positives, negatives) == 0 and results & {f"{finding}.auroc", f"gain.{finding}"}:
            raise _refused(f"{finding}.auroc", "is a ranking of studies that are all alike")
        share = round(positives / (positives + negatives), 3)
        if metrics.get(f"{finding}.prevalence", share) != share:
            raise _refused(f"{finding}.prevalence", "is not that of its counts")
    means = ("macro-auroc", "macro-interval", "macro-se", "gain.macro", "gain-se.macro")
    alone = [key for key in means if key in metrics] if not ranked else []
    alone += ["pooled-ece"] if not told and "pooled-ece" in metrics else []
    if alone:
        raise _refused(alone[0], "is a mean over findings none of which may be told")


def _check_update(answer: Answer, instruction: Instruction, config: RunConfig, policy: Policy) -> None:
    update = answer.update
    if instruction.stage != "train":
        if update is not None:
            raise EgressError(f"an answer to {instruction.stage} holds an update")
        return
    if update is None:
        raise EgressError("an answer to train holds no update")
    wanted = np.dtype(DTYPES[config.wire.codec])
    if config.wire.codec not in policy.answers.codecs or update.dtype != wanted:
        raise EgressError("an update has another number format than plan and policy allow")
    if update.ndim != 1 or not update.size:
        raise EgressError("an update is not one flat array", found=f"shape {update.shape}")
    received = 0 if instruction.adapter is None else instruction.adapter.size
    if update.size > received:
        raise EgressError(
            "an update is larger than the adapter it changes",
            found=f"{update.size} numbers, received {received}",
        )
    if not np.isfinite(update).all():
        raise EgressError("an update holds NaN or infinity")
    norm = float(np.linalg.norm(update.astype(np.float64)))
    limit = min(config.strategy.max_update_norm, policy.answers.max_update_norm)
    if norm > limit:
        raise EgressError("an update is larger than plan and policy allow", found=f"{norm:.4g}, {limit:g}")


def _whole(value: object) -> int:
    """Return a count that another rule checks; anything else counts as none."""
    return value if type(value) is int and 0 <= value <= MOST else 0


def _refused(key: str, why: str) -> EgressError:
    return EgressError(f"the figure {key} of an answer {why}")
