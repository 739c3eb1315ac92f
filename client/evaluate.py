"""Scores of one adapter on a site's studies; scores stay at the site, only summaries leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.dataset import SiteData
from client.prefix_cache import StudyInputs
from common.config import EvaluateConfig
from common.metrics.discrimination import auroc
from common.metrics.summary import Difference, SiteMetrics, compare_scores, evaluate_scores
from common.model.build import CxrModel
from common.seeds import numpy_generator

_BATCH = 128


def predict(model: CxrModel, inputs: StudyInputs, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return probabilities ``[studies, F]`` of the adapter now in the model."""
    model.train_mode(False)
    with torch.inference_mode():
        parts = [
            torch.sigmoid(inputs.logits(inputs.batch(indices[i : i + _BATCH])).float()).cpu()
            for i in range(0, len(indices), _BATCH)
        ]
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


def measure(
    probabilities: NDArray[np.float32],
    reference: NDArray[np.float32] | None,
    data: SiteData,
    indices: NDArray[np.int64],
    evaluate: EvaluateConfig,
    seed: int,
    site: str,
    min_cell: int,
) -> tuple[SiteMetrics, dict[str, Difference]]:
    """Summarise scores, and compare them with a reference on the same resampled patients.

    The bootstrap is seeded by run and site, not by model, so intervals of two models are paired.
    """
    labels, patients = data.labels[indices], [str(p) for p in data.patients[indices]]
    truth = (labels, patients, data.findings)

    def how() -> dict[str, Any]:
        generator = numpy_generator(seed, "bootstrap", site)
        return {"replicates": evaluate.replicates, "generator": generator, "min_cell": min_cell}

    metrics = evaluate_scores(probabilities, *truth, **how())
    if reference is None:
        return metrics, {}
    macro, gains = compare_scores(probabilities, reference, *truth, **how())
    return metrics, gains | ({"macro": macro} if macro else {})
