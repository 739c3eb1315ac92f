"""What a 32 x 32 thumbnail with logistic regression reaches: the floor a model must beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from client.data.dataset import SiteData, load_site_data
from client.site import load_site
from common.config import RunConfig
from common.metrics.summary import evaluate_scores
from common.seeds import numpy_generator
from server.report_schema import BaselineResult

SIDE = 32
REGULARISATION = 1e-3
"""Inverse strength C; 1,024 grey values against a few hundred studies need much of it."""


def thumbnail_baseline(files: dict[str, Path], config: RunConfig) -> dict[str, dict[str, BaselineResult]]:
    """Fit each site's own findings on its training thumbnails and measure on its test studies.

    A finding without both classes among the training studies is left out.
    """
    results: dict[str, dict[str, BaselineResult]] = {}
    for name, file in files.items():
        data = load_site_data(load_site(file), config.data, config.seed)
        results[name] = _one_site(name, data, config)
    return results


def _one_site(name: str, data: SiteData, config: RunConfig) -> dict[str, BaselineResult]:
    train, test = data.split["train"], data.split["test"]
    grey = thumbnails(data.pixels[np.concatenate([train, test])])
    scores = np.full((len(test), len(data.findings)), 0.5, dtype=np.float32)
    fitted = []
    for j, finding in enumerate(data.findings):
        labels = data.labels[train, j]
        known = ~np.isnan(labels)
        if len(np.unique(labels[known])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
        model.fit(grey[: len(train)][known], labels[known])
        scores[:, j] = model.predict_proba(grey[len(train) :])[:, 1]
        fitted.append(finding)
    metrics = evaluate_scores(
        scores,
        data.labels[test],
        [str(p) for p in data.patients[test]],
        data.findings,
        replicates=config.evaluate.replicates,
        generator=numpy_generator(config.seed, "bootstrap", name),
    )
    return {
        finding: BaselineResult(
            auroc=m.auroc, interval=m.interval, positives=m.positives, negatives=m.negatives
        )
        for finding, m in metrics.findings.items()
        if finding in fitted
    }


def thumbnails(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrink ``[n, S, S]`` to ``[n, 1024]`` in [0, 1], averaging areas."""
    small = [
        np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)) for image in pixels
    ]
    return np.stack(small).reshape(len(small), -1).astype(np.float32) / np.float32(255)
