"""No figure may rest on too few studies: the findings of an answer, taken one by one.

What two figures together would tell is looked at too: counts against their sum, a mean against what it
is a mean of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from client.gate.figures import refused, whole
from common.errors import SchemaError
from common.metrics.histogram import CELLS, STEP
from common.metrics.platt import PlattSums
from common.protocol import (
    BIN_COUNTS,
    BIN_MEAN,
    BIN_SPAN,
    LABEL_COUNTS,
    RELEASED,
    VALIDATION_COUNTS,
    Value,
    validation_key,
)


def check_evaluation(metrics: Mapping[str, Value], findings: tuple[str, ...], floor: int) -> None:
    """Refuse results of a finding that too few studies have, or lack, and means that rest on none other.

    Raises:
        EgressError: if so.
    """
    told = ranked = 0
    for finding in findings:
        positives, negatives = (whole(metrics[f"{finding}.{side}"]) for side in ("positives", "negatives"))
        if positives + negatives > whole(metrics["studies"]):
            raise refused(f"{finding}.positives", "and negatives are more than the studies")
        present = {key for key in metrics if key.startswith(f"{finding}.")}
        present |= {key for key in (f"gain.{finding}", f"gain-se.{finding}") if key in metrics}
        results = present - {f"{finding}.positives", f"{finding}.negatives"}
        if positives == negatives == 0:
            if results:
                raise refused(min(results), "is a result of a finding that nobody has or lacks")
            continue
        _check_cell(f"{finding}.positives", positives, negatives, floor)
        told += 1
        ranked += positives > 0 < negatives
        rankings = {f"{finding}.{name}" for name in ("auroc", "interval", "pr-auc", "mcc")}
        rankings |= {f"gain.{finding}"}
        if min(positives, negatives) == 0 and results & rankings:
            raise refused(f"{finding}.auroc", "is a ranking of studies that are all alike")
        share = round(positives / (positives + negatives), 3)
        if metrics.get(f"{finding}.prevalence", share) != share:
            raise refused(f"{finding}.prevalence", "is not that of its counts")
        _check_bins(metrics, finding, positives, negatives, floor)
    gains = [f"{kind}.{of}" for kind in ("gain", "gain-se") for of in ("macro", RELEASED)]
    means = ("macro-auroc", "macro-interval", "macro-se", *gains)
    alone = [key for key in means if key in metrics] if not ranked else []
    alone += ["pooled-ece"] if not told and "pooled-ece" in metrics else []
    if alone:
        raise refused(alone[0], "is a mean over findings none of which may be told")


def check_sums(
    metrics: Mapping[str, Value], findings: tuple[str, ...], floor: int, asked: Sequence[float]
) -> None:
    """Refuse sums of a finding that too few studies have, or lack, or that was not asked for.

    ``asked`` holds a slope of every finding, NaN where none was asked for.

    Raises:
        EgressError: if so, or if so many studies cannot have such sums.
    """
    for finding, slope in zip(findings, asked, strict=True):
        keys = [f"{finding}.{name}" for name in ("positives", "negatives", "platt")]
        present = [key for key in keys if key in metrics]
        if not present:
            continue
        if len(present) != len(keys):
            raise refused(present[0], "comes without the counts or sums that belong to it")
        if slope != slope:
            raise refused(present[0], "is of a finding that was not asked for")
        positives, negatives, sums = (metrics[key] for key in keys)
        _check_cell(keys[0], whole(positives), whole(negatives), floor)
        try:
            PlattSums.from_list(positives, negatives, sums)
        except SchemaError:
            raise refused(keys[2], "cannot come from so many studies") from None


def _check_bins(
    metrics: Mapping[str, Value], finding: str, positives: int, negatives: int, floor: int
) -> None:
    """Refuse bins of a small cell, or that are not these studies in the order of their probability."""
    keys = [f"{finding}.{name}" for name in (*BIN_COUNTS, BIN_MEAN)]
    lists = [value for key in keys if isinstance(value := metrics.get(key), list)]
    if not lists:
        _check_spans(metrics, finding, 0, floor)
        return
    if len({len(value) for value in lists}) != 1 or len(lists) != len(keys):
        raise refused(keys[0], "are not as many as their positives and means")
    studies, with_it, means = lists
    if sum(studies) != positives + negatives or sum(with_it) != positives:
        raise refused(keys[0], "do not add up to the finding's studies")
    for count, having in zip(studies, with_it, strict=True):
        if not 0 <= having <= count or not count:
            raise refused(keys[1], "are more than the studies")
        _check_cell(keys[1], int(having), int(count - having), floor)
    if means != sorted(means):
        raise refused(keys[2], "do not grow")
    _check_spans(metrics, finding, len(studies), floor)


def _check_spans(metrics: Mapping[str, Value], finding: str, bins: int, floor: int) -> None:
    """Refuse cells that are not one after the other, or that tell where single studies lie.

    Where no cell may be small, the bins leave no gap and end at coarse edges only: a gap would show that
    nobody lies there, a fine edge where the study lies that filled the bin.
    """
    keys = [f"{finding}.{name}" for name in BIN_SPAN]
    told = [value for key in keys if isinstance(value := metrics.get(key), list)]
    if not told:
        return
    if len(told) != len(keys) or {len(value) for value in told} != {bins}:
        raise refused(keys[0], "are not as many as the bins")
    first, end = told
    if any(a >= b for a, b in zip(first, end, strict=True)) or any(
        a < b for a, b in zip(first[1:], end, strict=False)
    ):
        raise refused(keys[0], "are not one after the other")
    if floor <= 1:
        return
    if [*first, CELLS] != [0, *end]:
        raise refused(keys[0], "leave a gap")
    if any(edge % STEP for edge in first):
        raise refused(keys[0], "are cut finer than they may be")


def check_labels(metrics: Mapping[str, Value], floor: int) -> None:
    """Refuse counts of training studies of a finding that too few have, or lack.

    Raises:
        EgressError: if so, or if they are more than the training studies.
    """
    counts = [value for key in LABEL_COUNTS if isinstance(value := metrics.get(key), list)]
    if not counts:
        return
    for positives, negatives in zip(*counts, strict=True):
        if positives + negatives > whole(metrics["train-studies"]):
            raise refused(LABEL_COUNTS[0], "and negatives are more than the training studies")
        if positives or negatives:
            _check_cell(LABEL_COUNTS[0], int(positives), int(negatives), floor)


def check_validation(metrics: Mapping[str, Value], findings: tuple[str, ...], floor: int) -> None:
    """Refuse a round's figures on validation studies of which too few have, or lack, the finding.

    Raises:
        EgressError: if so, or if their mean is not the mean of the findings that are told.
    """
    areas: list[float] = []
    for finding in findings:
        keys = {key for key in metrics if key.startswith(validation_key(finding, ""))}
        if not keys:
            continue
        first, second = (validation_key(finding, side) for side in VALIDATION_COUNTS)
        if not {first, second} <= keys:
            raise refused(min(keys), "comes without the number of studies behind it")
        positives, negatives = whole(metrics[first]), whole(metrics[second])
        if positives == negatives == 0:
            raise refused(min(keys), "is a result of a finding that nobody has or lacks")
        _check_cell(first, positives, negatives, floor)
        rankings = sorted(keys & {validation_key(finding, name) for name in ("auroc", "pr-auc")})
        if min(positives, negatives) == 0 and rankings:
            raise refused(rankings[0], "is a ranking of studies that are all alike")
        area = metrics.get(validation_key(finding, "auroc"))
        areas += [area] if isinstance(area, float) else []
    mean = metrics.get("validation-auroc")
    if mean is None:
        return
    if not areas:
        raise refused("validation-auroc", "is a mean over findings none of which may be told")
    if not isinstance(mean, float) or abs(fsum(areas) / len(areas) - mean) > _ROUNDED:
        raise refused("validation-auroc", "is not the mean of the findings that are told")


_ROUNDED = 0.00101
"""Three decimals of a mean, and of what it is the mean of."""


def _check_cell(key: str, positives: int, negatives: int, floor: int) -> None:
    if min(positives, negatives) < floor and floor > 1:
        raise refused(key, f"or negatives are fewer than {floor}")
