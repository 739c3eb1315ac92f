"""Every update is checked here before it can touch the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.adapter import AdapterSchema
from common.codec import DTYPES
from common.config import RunConfig
from common.errors import NonFiniteError, NormError, SchemaError, SiteError, WeightError
from common.protocol import Answer, Value
from server.update import SiteUpdate

_SINGLE = ("loss", "steps", "validation-auroc")
"""Metrics the round's record keeps one number of."""


def admit(answer: Answer, site: str, schema: AdapterSchema, config: RunConfig, registered: int) -> SiteUpdate:
    """Turn an answer into an update, or say why not.

    ``schema`` is that of the tensors this round trains, ``registered`` the training studies the
    site enrolled with; it cannot weigh more.

    Raises:
        SiteError: if the answer is another site's.
        SchemaError: if the update is missing, of another shape or number format.
        NonFiniteError: if a value or a metric is NaN or infinite.
        NormError: if its L2 norm is above ``strategy.max_update_norm``.
        WeightError: if num-examples or the label counts are not what the site can have.
    """
    if answer.site != site:
        raise SiteError("the answer names another site than the one asked")
    update = answer.update
    if update is None:
        raise SchemaError("the answer holds no update")
    if update.dtype != DTYPES[config.wire.codec]:
        raise SchemaError(
            "the update has another number format than the plan's codec",
            found=f"{update.dtype}, expected {config.wire.codec}",
        )
    if update.shape != (schema.numel,):
        raise SchemaError(
            "the update has another shape than the round's tensors",
            found=f"{update.shape}, expected ({schema.numel},)",
        )
    wide = update.astype(np.float64)
    if not np.isfinite(wide).all():
        raise NonFiniteError("the update holds NaN or infinity")
    norm = float(np.linalg.norm(wide))
    if norm > config.strategy.max_update_norm:
        raise NormError(
            "the update is larger than strategy.max_update_norm",
            found=f"{norm:.4g}, at most {config.strategy.max_update_norm:.4g}",
        )
    examples = _examples(answer.metrics, config, registered)
    labelled = _labelled(answer.metrics, len(config.data.findings), examples)
    for key, value in answer.metrics.items():
        single = not isinstance(value, list) or key not in _SINGLE
        if not single or not np.isfinite(np.asarray(value, dtype=np.float64)).all():
            raise NonFiniteError("a metric is not a finite number")
    return SiteUpdate(site, examples, labelled, schema.unpack(update))


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
