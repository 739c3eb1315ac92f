"""Scores of one adapter on a site's studies; scores stay at the site, only summaries leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.dataset import SiteData
from client.prefix_cache import Modality, StudyInputs, leave_out
from common.metrics.calibration import ece
from common.metrics.discrimination import auroc, average_precision, best_threshold
from common.metrics.summary import Difference, SiteMetrics, compare_scores, evaluate_scores
from common.model.build import CxrModel
from common.protocol import Value, validation_key
from common.sections import EvaluateConfig
from common.seeds import numpy_generator

_BATCH = 128


def predict(
    model: CxrModel, inputs: StudyInputs, indices: NDArray[np.int64], missing: Modality = ""
) -> NDArray[np.float32]:
    """Return probabilities ``[studies, F]`` of the adapter now in the model, which may get a part only."""
    model.train_mode(False)
    with torch.inference_mode():
        parts = []
        for i in range(0, len(indices), _BATCH):
            rows = indices[i : i + _BATCH]
            batch = inputs.batch(rows, without=leave_out(len(rows), missing))
            parts.append(torch.sigmoid(inputs.logits(batch).float()).cpu())
    if not parts:
        return np.zeros((0, len(model.findings)), dtype=np.float32)
    return torch.cat(parts).numpy()


def macro_auroc(
    probabilities: NDArray[np.float32], labels: NDArray[np.float32], min_cell: int = 1
) -> float | None:
    """Mean AUROC over the findings that have both classes, or None.

    A figure that leaves the site has the site's ``min_cell``: findings with fewer positives or
    negatives are left out, as `measure` does.
    """
    scores = []
    for j in range(labels.shape[1]):
        known = ~np.isnan(labels[:, j])
        if min((labels[:, j] == 1).sum(), (labels[:, j] == 0).sum()) >= min_cell:
            scores.append(auroc(probabilities[known, j], labels[known, j]))
    defined = [s for s in scores if s is not None]
    return float(np.mean(defined)) if defined else None


def validation_figures(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.float32],
    findings: Sequence[str],
    min_cell: int,
) -> dict[str, Value]:
    """Return what a round tells of the validation studies: per finding, and the macro AUROC.

    A finding with fewer than ``min_cell`` positives or negatives is absent, and so is what is
    undefined. Without a bootstrap: intervals come with the evaluation at the end.
    """
    told: dict[str, Value] = {}
    for j, finding in enumerate(findings):
        p, y = probabilities[:, j], labels[:, j]
        positives, negatives = int((y == 1).sum()), int((y == 0).sum())
        if not positives + negatives or (min(positives, negatives) < min_cell and min_cell > 1):
            continue
        told[validation_key(finding, "positives")] = positives
        told[validation_key(finding, "negatives")] = negatives
        for name, figure in (("auroc", auroc(p, y)), ("pr-auc", average_precision(p, y)), ("ece", ece(p, y))):
            if figure is not None:
                told[validation_key(finding, name)] = round(figure, 3)
    score = macro_auroc(probabilities, labels, min_cell)
    return told if score is None else {"validation-auroc": round(score, 3), **told}


def measure(
    probabilities: NDArray[Any],
    reference: NDArray[np.float32] | None,
    data: SiteData,
    indices: NDArray[np.int64],
    evaluate: EvaluateConfig,
    seed: int,
    site: str,
    min_cell: int,
    *,
    ranked_by: NDArray[np.float32] | None = None,
    chosen_on: NDArray[np.float32] | None = None,
    histograms: bool = False,
) -> tuple[SiteMetrics, dict[str, Difference]]:
    """Summarise scores, and compare them with a reference on the same resampled patients.

    The bootstrap is seeded by run and site, not by model, so intervals of two models are paired.
    ``chosen_on`` are the model's scores, as in ``ranked_by``, on the validation studies: there it is
    chosen from where on a study is called to have a finding. ``ranked_by`` and ``histograms`` as in
    `evaluate_scores`.
    """
    labels, patients = data.labels[indices], [str(p) for p in data.patients[indices]]
    truth = (labels, patients, data.findings)

    def how() -> dict[str, Any]:
        generator = numpy_generator(seed, "bootstrap", site)
        return {"replicates": evaluate.replicates, "generator": generator, "min_cell": min_cell}

    metrics = evaluate_scores(
        probabilities,
        *truth,
        **how(),
        ranked_by=ranked_by,
        thresholds=_thresholds(chosen_on, data),
        histograms=histograms,
    )
    if reference is None:
        return metrics, {}
    macro, gains = compare_scores(probabilities, reference, *truth, **how())
    return metrics, gains | ({"macro": macro} if macro else {})


def _thresholds(scores: NDArray[np.float32] | None, data: SiteData) -> list[float | None]:
    """Return from where on each finding is called, by the validation studies; empty without scores."""
    if scores is None:
        return []
    labels = data.labels[data.split["validation"]]
    return [best_threshold(scores[:, j], labels[:, j]) for j in range(len(data.findings))]
