"""What the embedded backbone's frozen features know: ``python -m simulations.benchmarks.embedded_probe``.

A logistic regression per finding on mean-pooled features, pretrained against random weights of the
same architecture, on phantoms of seeds the pretraining never drew, each image from a random
scanner.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
import timm

from common.model.base import embedded_architecture, embedded_file
from common.model.weights import load_weights
from simulations.phantom.cases import FINDINGS, Cases, sample_cases
from simulations.phantom.render import render
from simulations.pretrain.radiographs import SIZE, scanned

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """AUROC of a linear probe, by finding."""

    auroc: dict[str, float]

    @property
    def macro(self) -> float:
        """Mean over findings."""
        return float(np.mean(list(self.auroc.values())))


def build(pretrained: bool, file: Path | None = None) -> nn.Module:
    """Build the embedded architecture without a head, pretrained or seeded at random."""
    arguments = embedded_architecture()
    torch.manual_seed(0)
    net = timm.create_model(arguments.pop("model_name"), img_size=SIZE, num_classes=0, **arguments)
    if pretrained:
        load_weights(net, file or embedded_file(), "head")
    return net.eval()


def features(net: nn.Module, clean: NDArray[np.uint8], seed: int) -> NDArray[np.float32]:
    """Return mean-pooled features ``[n, D]`` of radiographs as random scanners stored them."""
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        parts = [net(scanned(clean[i : i + 50], i, rng)) for i in range(0, len(clean), 50)]
    return torch.cat(parts).numpy()


def probe(net: nn.Module, train: Cases, test: Cases, images: tuple[NDArray[np.uint8], ...]) -> Probe:
    """Fit on one set of cases, measure on another."""
    fitted, held = features(net, images[0], 1), features(net, images[1], 2)
    auroc = {}
    for j, finding in enumerate(FINDINGS):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000))
        model.fit(fitted, train.labels[:, j])
        auroc[finding] = float(roc_auc_score(test.labels[:, j], model.predict_proba(held)[:, 1]))
    return Probe(auroc)


def main() -> None:
    """Print both probes side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=1000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cases = sample_cases(options.train, seed=900_001), sample_cases(options.test, seed=900_002)
    workers = os.cpu_count() or 1
    images = tuple(np.round(render(c, SIZE, workers=workers) * 255).astype(np.uint8) for c in cases)
    pretrained = probe(build(True, options.weights), *cases, images)
    random = probe(build(False), *cases, images)
    logger.info("%-16s %10s %10s", "finding", "pretrained", "random")
    for finding in FINDINGS:
        logger.info("%-16s %10.3f %10.3f", finding, pretrained.auroc[finding], random.auroc[finding])
    logger.info("%-16s %10.3f %10.3f", "macro", pretrained.macro, random.macro)


if __name__ == "__main__":
    main()
