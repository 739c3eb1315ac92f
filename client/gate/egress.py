"""The gate on the way out: an answer leaves if every name, shape, range and decimal in it is known.

What each stage may send is spelled out in `client.gate.figures`, and no figure may rest on too few
studies (`client.gate.cells`). Whatever is not there is refused, whoever built it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np

from client.gate.cells import check_evaluation, check_labels, check_sums, check_validation
from client.gate.figures import refused, rules_for
from client.gate.policy import MetricGroup, Policy
from client.site import SiteConfig
from common.codec import DTYPES, decode, for_models
from common.config import RunConfig
from common.errors import EgressError, FedcxrError, SchemaError
from common.protocol import ROUND_STAGES, Answer, Instruction, Value


def _codes(kind: type[FedcxrError]) -> Iterator[str]:
    yield kind.code
    for child in kind.__subclasses__():
        yield from _codes(child)


CODES = frozenset(_codes(FedcxrError))
"""Every code an answer may carry."""


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
    answer = _without_own_model(answer, instruction, policy)
    rules = rules_for(instruction, config, policy, answer.metrics)
    kept = {
        key: value
        for key, value in answer.metrics.items()
        if key not in rules or rules[key].group in (None, *policy.answers.groups)
    }
    return dataclasses.replace(answer, metrics=kept)


def release(
    answer: Answer, instruction: Instruction, config: RunConfig, policy: Policy, site: SiteConfig
) -> Answer:
    """Return what of an answer may leave: the whole is checked, then what the policy withholds taken out.

    Raises:
        EgressError: as `check_answer`.
    """
    answer = _without_own_model(answer, instruction, policy)
    answers = policy.answers.model_copy(update={"metrics": get_args(MetricGroup)})
    check_answer(answer, instruction, config, policy.model_copy(update={"answers": answers}), site)
    return answer if answer.code else withhold(answer, instruction, config, policy)


def _without_own_model(answer: Answer, instruction: Instruction, policy: Policy) -> Answer:
    """Keep the model that the site trained alone here, unless the policy lets it leave."""
    if instruction.stage != "local" or policy.answers.local_adapter:
        return answer
    metrics = {key: value for key, value in answer.metrics.items() if key != "num-examples"}
    return dataclasses.replace(answer, update=None, metrics=metrics)


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
    rules = rules_for(instruction, config, policy, metrics)
    for key, value in metrics.items():
        if key not in rules:
            raise EgressError(f"an answer to {instruction.stage} holds a figure that it may not hold")
        if rules[key].group not in (None, *policy.answers.groups):
            raise refused(key, f"is of the group {rules[key].group}, which answers.metrics withholds")
        rules[key].check(key, value)
    missing = [
        key
        for key, rule in rules.items()
        if rule.needed and key not in metrics and rule.group in (None, *policy.answers.groups)
    ]
    if missing:
        raise refused(missing[0], "is missing")
    floor = max(site.evaluate.min_cell, policy.answers.min_cell)
    if instruction.stage == "enrol":
        check_labels(metrics, floor)
    if "findings" not in policy.answers.metrics:
        return
    if instruction.stage == "evaluate":
        check_evaluation(metrics, config.data.findings, floor)
    elif instruction.stage == "train":
        check_validation(metrics, config.data.findings, floor)
    elif instruction.stage == "calibrate":
        findings = config.data.findings
        check_sums(metrics, findings, floor, _slopes_asked(instruction, len(findings)))


def _slopes_asked(instruction: Instruction, findings: int) -> list[float]:
    """Return the slope at which each finding's sums are asked for, NaN where they are not.

    Raises:
        EgressError: if the instruction does not hold a slope and a bias per finding.
    """
    scaling = instruction.scaling
    if scaling is None or scaling.shape != (2 * findings,):
        raise EgressError("sums were asked for without a slope and a bias for each finding")
    return [float(slope) for slope in scaling[:findings]]


def _check_update(answer: Answer, instruction: Instruction, config: RunConfig, policy: Policy) -> None:
    update, own = answer.update, instruction.stage == "local"
    may = own and config.evaluate.matrix and policy.answers.local_adapter
    if instruction.stage not in ROUND_STAGES and not may:
        if update is not None:
            raise EgressError(f"an answer to {instruction.stage} holds an update")
        return
    if update is None:
        if not own:
            raise EgressError(f"an answer to {instruction.stage} holds no update")
        return
    if own and "num-examples" not in answer.metrics:
        raise EgressError("a model of the site's own comes without the number of studies behind it")
    wanted = np.dtype(DTYPES[config.wire.codec])
    if config.wire.codec not in policy.answers.codecs or update.dtype != wanted:
        raise EgressError("an update has another number format than plan and policy allow")
    if update.ndim != 1 or not update.size:
        raise EgressError("an update is not one flat array", found=f"shape {update.shape}")
    received = instruction.numel if instruction.adapter is None else instruction.adapter.size
    try:
        values = decode(update, for_models(config.wire) if own else config.wire, received)
    except SchemaError as error:
        raise EgressError(f"an update cannot leave: {error.problem}", found=error.found) from None
    if not values.size or (own and values.size < received):
        raise EgressError(
            "an update is smaller than the adapter it changes",
            found=f"{values.size} numbers, received {received}",
        )
    if not np.isfinite(values).all():
        raise EgressError("an update holds NaN or infinity")
    norm = float(np.linalg.norm(values.astype(np.float64)))
    limit = min(config.strategy.max_update_norm, policy.answers.max_update_norm)
    if norm > limit:
        raise EgressError("an update is larger than plan and policy allow", found=f"{norm:.4g}, {limit:g}")
