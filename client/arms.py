"""Measuring a model on a site's own studies: which scores an arm has, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.asked import Asked
from client.calibrate import own_bias
from client.data.dataset import SiteData
from client.evaluate import measure, predict
from client.local import load_local
from client.personalise import gain_over_released, load_personal, personal_scores
from client.prefix_cache import Modality
from common.errors import DataError, RunError, SchemaError
from common.metrics.platt import calibrated
from common.protocol import (
    LOCAL,
    OWN_BIAS,
    OWN_MODEL,
    PERSONALISED,
    RELEASED,
    Instruction,
    Value,
    metrics_to_wire,
)

Scores = NDArray[np.float32]
"""Probabilities ``[studies, F]``."""

Rows = NDArray[np.int64]

Measured = Callable[[Instruction, NDArray[Any], SiteData, Rows], None]
"""Takes what was asked, probabilities ``[n, F]``, the site's data and the n rows that were measured."""


@dataclass(frozen=True)
class _Arm:
    """The scores of a model, and what else is said of them."""

    scores: NDArray[Any]
    reference: NDArray[np.float32] | None = None
    """Scores of the site's own model on the same studies."""
    ranked_by: NDArray[Any] | None = None
    """The scores before they were scaled. Both have the same bins: of two cuts through one ranking the
    difference could isolate a few studies."""
    released: Scores | None = None
    """Scores of the adapter it was made of."""
    chosen_on: NDArray[Any] | None = None
    """Scores on the validation studies, where thresholds are chosen."""


class Arms:
    """Measures what a site is asked to measure; keeps the scores of its own model for paired comparisons."""

    def __init__(self) -> None:
        self._own: dict[tuple[str, str], Scores] = {}

    def measure(self, asked: Asked, measured: Measured | None = None) -> dict[str, Value]:
        """Return the figures of the model that the instruction names or carries.

        Raises:
            RunError: if it names a model that this site does not have.
            SchemaError: if it does not carry what the arm needs.
            DataError: if so few studies would be measured otherwise that they could be told apart.
        """
        instruction, config, data = asked.instruction, asked.config, asked.data
        indices = data.split[instruction.split]
        tested = instruction.split == "test" and not instruction.arm.startswith(OWN_MODEL)
        arm = self._arm(asked, indices, data.split["validation"] if tested else None)
        if measured is not None:
            measured(instruction, arm.scores, data, indices)
        metrics, gains = measure(
            arm.scores,
            arm.reference,
            data,
            indices,
            config.evaluate,
            config.seed,
            asked.site.name,
            asked.min_cell,
            ranked_by=arm.ranked_by,
            chosen_on=arm.chosen_on,
            histograms=config.evaluate.pooled and tested and arm.ranked_by is None,
        )
        if arm.released is not None:
            told = (data, indices, config, asked.site.name, asked.min_cell)
            gain = gain_over_released(arm.scores, arm.released, *told)
            gains = gains | ({RELEASED: gain} if gain else {})
        return metrics_to_wire(metrics, gains)

    def _arm(self, asked: Asked, indices: Rows, validation: Rows | None) -> _Arm:
        instruction = asked.instruction
        local = self._own_scores(asked, instruction.split, indices)
        if instruction.arm == LOCAL:
            if local is None:
                raise RunError("this site has no local baseline of this plan to evaluate")
            beside = None if validation is None else self._own_scores(asked, "validation", validation)
            return _Arm(local, chosen_on=beside)
        asked.model.load(asked.received())
        missing = _missing(asked, indices)
        scores = predict(asked.model, asked.inputs, indices, missing)
        chosen_on = None if validation is None else predict(asked.model, asked.inputs, validation, missing)
        if instruction.scaling is not None:
            slope, bias = asked.scaling()
            if instruction.arm == OWN_BIAS and validation is not None and chosen_on is not None:
                bias = bias + own_bias(chosen_on, asked.data.labels[validation], slope, bias)
            return _Arm(calibrated(scores, slope, bias), ranked_by=scores, chosen_on=chosen_on)
        if instruction.arm == PERSONALISED:
            own = _personal_scores(asked, indices)
            chosen_on = None if validation is None else _personal_scores(asked, validation)
            return _Arm(own, local, released=scores, chosen_on=chosen_on)
        compared = not missing and not instruction.arm.startswith(OWN_MODEL)
        return _Arm(scores, local if compared else None, chosen_on=chosen_on)

    def _own_scores(self, asked: Asked, split: str, indices: Rows) -> Scores | None:
        """Return the probabilities of this site's own model, if it has trained one."""
        key = (asked.plan, split)
        if key not in self._own:
            baseline = load_local(asked.local_file, asked.plan)
            if baseline is None:
                return None
            asked.model.load(baseline.state)
            self._own[key] = predict(asked.model, asked.inputs, indices)
        return self._own[key]


def _personal_scores(asked: Asked, indices: Rows) -> Scores:
    """Probabilities of what this site made of the released adapter, which the instruction carries."""
    start = asked.received()
    own = load_personal(asked.personal_file, asked.plan, start.digest())
    if own is None:
        raise RunError("this site has made nothing of its own of this adapter")
    return personal_scores(own.state, asked.model, asked.inputs, start, asked.site.name, indices)


def _missing(asked: Asked, indices: Rows) -> Modality:
    """Return what the model is to do without."""
    missing = asked.instruction.missing
    if missing and asked.model.text is None:
        raise SchemaError(f"this model reads no reports, and is asked to do without the {missing}")
    told = int(asked.inputs.told(indices).sum())
    if missing == "text" and 0 < told < asked.min_cell:
        # Only their scores would change: beside the model with reports, that isolates a few.
        raise DataError("too few studies have a report to be measured without it", found=str(told))
    return missing
