"""Every update is checked here before it can touch the model, every result before it is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.adapter import AdapterSchema
from common.codec import decode
from common.config import RunConfig
from common.errors import NonFiniteError, NormError, SchemaError, SiteError, WeightError
from common.metrics import FindingMetrics
from common.metrics.histogram import CELLS
from common.protocol import (
    CODEC_ERROR,
    VALIDATION_COUNTS,
    VALIDATION_SHARES,
    Answer,
    Value,
    metrics_from_wire,
    metrics_to_wire,
    validation_key,
)
from server.report_arms import site_result
from server.report_schema import BinResult, Gap
from server.update import SiteUpdate, l2_norm, named

_PRETRAINED = ("loss", "steps", "seconds", CODEC_ERROR)
"""Figures of a round of pretraining beside num-examples."""
_SINGLE = (*_PRETRAINED, "validation-auroc")
"""Figures of a round that are one number."""


def admit(
    answer: Answer,
    site: str,
    schema: AdapterSchema,
    config: RunConfig,
    registered: int,
    pretraining: bool = False,
) -> SiteUpdate:
    """Turn an answer into an update, or say why not.

    ``schema`` is that of the tensors this round trains, ``registered`` the studies the site enrolled
    with, for training or for ``pretraining``; it cannot weigh more. Pretraining moves no row of the head,
    so nothing is told of labels.

    Raises:
        SiteError: if the answer is another site's.
        SchemaError: if the update is missing, of another shape or number format.
        NonFiniteError: if a value or a figure is NaN or infinite.
        NormError: if its L2 norm is above ``strategy.max_update_norm``.
        WeightError: if num-examples or the label counts are not what the site can have.
        SchemaError: if there is a figure that no round asks for, or one out of its range.
    """
    if answer.site != site:
        raise SiteError("the answer names another site than the one asked")
    if answer.update is None:
        raise SchemaError("the answer holds no update")
    # As views: the update is on its way to the round's spool, and one copy is made there.
    delta = named(torch.from_numpy(admit_values(answer.update, schema, config)), schema)
    examples = _examples(answer.metrics, config, registered)
    if pretraining:
        _check_pretrained(answer.metrics)
        return SiteUpdate(site, examples, np.zeros(len(config.data.findings), dtype=np.int64), delta)
    labelled = _labelled(answer.metrics, len(config.data.findings), examples)
    _check_figures(answer.metrics, config.data.findings)
    return SiteUpdate(site, examples, labelled, delta)


def admit_delta(update: NDArray[Any], schema: AdapterSchema, config: RunConfig) -> dict[str, Tensor]:
    """Cut a flat update into named tensors, or say why not.

    Raises:
        SchemaError, NonFiniteError, NormError: as ``admit_values`` does.
    """
    return schema.unpack(admit_values(update, schema, config))


def admit_values(update: NDArray[Any], schema: AdapterSchema, config: RunConfig) -> NDArray[np.float32]:
    """Decode an update into a flat vector ``[numel]``, or say why not.

    Raises:
        SchemaError: if it is of another shape or number format than ``schema`` and plan ask for, or not
            what the plan's codec writes.
        NonFiniteError: if a value is NaN or infinite.
        NormError: if its L2 norm is above ``strategy.max_update_norm``.
    """
    values = decode(update, config.wire, schema.numel)
    if values.shape != (schema.numel,):
        raise SchemaError(
            "the update has another shape than the round's tensors",
            found=f"{values.shape}, expected ({schema.numel},)",
        )
    norm = l2_norm(values)
    if not math.isfinite(norm):
        raise NonFiniteError("the update holds NaN or infinity")
    if norm > config.strategy.max_update_norm:
        raise NormError(
            "the update is larger than strategy.max_update_norm",
            found=f"{norm:.4g}, at most {config.strategy.max_update_norm:.4g}",
        )
    return values


def admit_results(metrics: Mapping[str, Value], findings: Sequence[str]) -> dict[str, Value]:
    """Return what a site measured of a model, if the report can hold it.

    Raises:
        NonFiniteError: if a number is NaN or infinite.
        SchemaError: if a figure is unknown, of another shape, or one that cannot be.
    """
    for value in metrics.values():
        if not np.isfinite(np.asarray(value, dtype=np.float64)).all():
            raise NonFiniteError("a result is not a finite number")
    try:
        measured, gains = metrics_from_wire(metrics, findings)
        for result in measured.findings.values():
            _check_bins(result)
        site_result(measured)
        for gain in gains.values():
            Gap(difference=gain.difference, interval=gain.interval)
    except (ValueError, IndexError, TypeError):
        raise SchemaError("a result is not one that can be") from None
    spread = [measured.macro_se or 0.0, *(gain.se for gain in gains.values())]
    if not all(0 <= se <= 1 for se in spread) or any(abs(g.difference) > 1 for g in gains.values()):
        raise SchemaError("a result is not one that can be")
    if unknown := len(metrics.keys() - metrics_to_wire(measured, gains).keys()):
        raise SchemaError("an evaluation holds figures that nobody asked for", found=str(unknown))
    return dict(metrics)


def _check_bins(result: FindingMetrics) -> None:
    """Refuse bins that hold no study, and cells that are not one after the other with all studies in them.

    Raises:
        ValueError: if so.
    """
    for part in result.bins:
        BinResult(studies=part.studies, positives=part.positives, mean=part.mean)
    covered = [part.span for part in result.bins if part.span is not None]
    edges = [edge for span in covered for edge in span]
    if edges != sorted(edges) or any(not 0 <= first < end <= CELLS for first, end in covered):
        raise ValueError("cells of the grid overlap, or are not there")
    held = sum(part.positives for part in result.bins), sum(part.studies for part in result.bins)
    if covered and held != (result.positives, result.positives + result.negatives):
        raise ValueError("the cells hold other studies than the finding has")


def _check_figures(metrics: Mapping[str, Value], findings: Sequence[str]) -> None:
    """Refuse figures that are not finite, not a round's, or out of their range."""
    shares = {validation_key(f, name) for f in findings for name in VALIDATION_SHARES} | {"validation-auroc"}
    counts = {validation_key(f, name) for f in findings for name in VALIDATION_COUNTS}
    for key, value in metrics.items():
        single = not isinstance(value, list) or key not in {*_SINGLE, *shares, *counts}
        if not single or not np.isfinite(np.asarray(value, dtype=np.float64)).all():
            raise NonFiniteError("a figure is not a finite number")
        if key not in {"num-examples", "labelled", *_SINGLE, *shares, *counts}:
            raise SchemaError("the answer holds a figure that no round asks for")
        if key in shares and not 0 <= value <= 1:  # type: ignore[operator]
            raise SchemaError("a figure on validation studies is not within 0 to 1")
        if key in counts and not (type(value) is int and value >= 0):
            raise SchemaError("a number of validation studies is not one")


def _check_pretrained(metrics: Mapping[str, Value]) -> None:
    """Refuse figures that are not single finite numbers, or that no round of pretraining has."""
    for key, value in metrics.items():
        if isinstance(value, list) or not np.isfinite(value):
            raise NonFiniteError("a figure is not a finite number")
        if key not in ("num-examples", *_PRETRAINED):
            raise SchemaError("the answer holds a figure that no round of pretraining asks for")


def _examples(metrics: Mapping[str, Value], config: RunConfig, registered: int) -> int:
    value = metrics.get("num-examples")
    limit = min(registered, config.strategy.max_examples)
    if type(value) is not int or not 0 < value <= limit:
        raise WeightError(
            "num-examples is not a whole number the site can have",
            found=f"{value!r}, expected 1 to {limit}",
        )
    return value


def _labelled(metrics: Mapping[str, Value], findings: int, examples: int) -> np.ndarray:
    value = metrics.get("labelled")
    counts = np.asarray(value if isinstance(value, list) else [], dtype=np.float64)
    whole = counts.shape == (findings,) and (counts == np.round(counts)).all()
    if not whole or counts.min() < 0 or counts.max() > examples:
        raise WeightError(
            "label counts are not one whole number per finding, at most num-examples",
            found=f"{counts.size} values",
        )
    return counts.astype(np.int64)
