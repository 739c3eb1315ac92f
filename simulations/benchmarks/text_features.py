"""What the embedded text encoder's frozen features know: ``python -m simulations.benchmarks.text_features``.

The features of reports, as each mode of redaction leaves them, are read in two ways, with pretrained
and with random weights: by a linear head trained for a few hundred steps as a run trains it, and by
a logistic regression on standardised features, which says what is in them at all. The reports are of
phantoms whose seeds the pretraining never drew, or of a site (``--site site.toml``).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
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
from torch.nn import functional

from client.site import load_site
from client.text.redaction import MODES
from client.text.studies import Cells, one_per_study, read_reports, used_text
from common.config import RunConfig
from common.model.text.embedded import build_embedded
from common.model.text.encoder import TextTower, load_text_tower
from common.sections import Redaction
from simulations.phantom.cases import sample_cases
from simulations.phantom.report import write_reports

LENGTH = 128
Head = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Features ``[n, D]`` to scores ``[n, F]``."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Reports and what their images show."""

    cells: tuple[Cells, ...]
    labels: NDArray[np.float32]
    """``[n, F]``: 1, 0, NaN not annotated."""

    def take(self, rows: NDArray[np.int64]) -> Labelled:
        """Return these studies."""
        return Labelled(tuple(self.cells[row] for row in rows), self.labels[rows])

    def texts(self, mode: Redaction) -> list[str]:
        """Return the reports as one mode of redaction leaves them."""
        return [used_text(cells, mode)[0] for cells in self.cells]


def phantom_reports(count: int, seed: int) -> Labelled:
    """Write the reports of phantoms."""
    cases = sample_cases(count, seed=seed)
    cells: list[Cells] = [
        (("indication", r.indication), ("findings", r.findings), ("impression", r.impression))
        for r in write_reports(cases)
    ]
    return Labelled(tuple(cells), cases.labels.astype(np.float32))


def site_reports(site: Path, seed: int) -> tuple[Labelled, Labelled]:
    """Read a site's studies, two thirds of the patients to fit and the others to measure."""
    studies = one_per_study(read_reports(load_site(site)))
    patients, which = np.unique(studies.patient, return_inverse=True)
    fits = (np.random.default_rng(seed).permutation(len(patients)) % 3 > 0)[which]
    whole = Labelled(studies.texts, studies.labels)
    return whole.take(np.flatnonzero(fits)), whole.take(np.flatnonzero(~fits))


def towers(weights: Path | None = None) -> tuple[TextTower, TextTower]:
    """Return the embedded text tower, and the same with random weights."""
    config = RunConfig.from_flat({"data.text": True, "model.text-weights": str(weights or "")})
    pretrained, random = load_text_tower(config), load_text_tower(config)
    random.net.load_state_dict(build_embedded(0).state_dict())
    return pretrained, random


def features(tower: TextTower, texts: list[str]) -> NDArray[np.float32]:
    """Return pooled features ``[n, D]``."""
    tokens = tower.tokenize(texts, LENGTH)
    parts = []
    with torch.inference_mode():
        for rows in torch.arange(len(texts)).split(100):
            some = tokens.take(rows.numpy())
            mask = torch.from_numpy(some.mask)
            parts.append(tower.pooled(tower.hidden(torch.from_numpy(some.ids), mask), mask))
    return torch.cat(parts).numpy()


def trained_head(fitted: NDArray[np.float32], labels: NDArray[np.float32]) -> Head:
    """Train a linear head from zero on the features as they are, 300 steps of 32 at a run's default rate."""
    head, generator = nn.Linear(fitted.shape[1], labels.shape[1]), torch.Generator().manual_seed(0)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.0)
    seen, said = torch.from_numpy(fitted), torch.from_numpy(labels)
    for _ in range(300):
        rows = torch.randint(len(seen), (32,), generator=generator)
        known = ~said[rows].isnan()
        loss = functional.binary_cross_entropy_with_logits(head(seen[rows])[known], said[rows][known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lambda held: np.asarray(head(torch.from_numpy(held)).detach())


def regression(fitted: NDArray[np.float32], labels: NDArray[np.float32]) -> Head:
    """Fit a logistic regression per finding on standardised features."""
    models = []
    for j in range(labels.shape[1]):
        rows = np.flatnonzero(~np.isnan(labels[:, j]))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000))
        models.append(model.fit(fitted[rows], labels[rows, j]))
    return lambda held: np.stack([model.decision_function(held) for model in models], axis=1)


def macro_auroc(head: Head, held: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Measure a head on reports held back: the mean over findings."""
    scores = head(held)
    known = ~np.isnan(labels)
    return float(np.mean([roc_auc_score(labels[k, j], scores[k, j]) for j, k in enumerate(known.T)]))


def known_on_both_sides(parts: tuple[Labelled, Labelled], least: int = 10) -> tuple[Labelled, Labelled]:
    """Leave out findings without as many positives and negatives in either part."""
    counts = [((part.labels == v).sum(axis=0)) for part in parts for v in (0, 1)]
    chosen = np.min(counts, axis=0) >= least
    train, test = (Labelled(part.cells, part.labels[:, chosen]) for part in parts)
    return train, test


def main() -> None:
    """Print macro AUROC by redaction, of both encoders, read in both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--site", type=Path, default=None)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.site:
        parts = site_reports(options.site, 0)
    else:
        parts = phantom_reports(1500, 900_001), phantom_reports(1000, 900_002)
    train, test = known_on_both_sides(parts)
    counts = len(train.cells), len(test.cells), train.labels.shape[1]
    logger.info("%d reports to fit, %d to measure, %d findings", *counts)
    logger.info("%-12s %-12s %12s %12s", "redaction", "read by", "pretrained", "random")
    for mode in MODES:
        texts = train.texts(mode), test.texts(mode)
        known = [tuple(features(tower, some) for some in texts) for tower in towers(options.weights)]
        for name, read in (("trained head", trained_head), ("regression", regression)):
            macro = [macro_auroc(read(a, train.labels), b, test.labels) for a, b in known]
            logger.info("%-12s %-12s %12.3f %12.3f", mode, name, *macro)


if __name__ == "__main__":
    main()
