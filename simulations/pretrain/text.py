"""Make the embedded text encoder: ``python -m simulations.pretrain.text FILE``.

Three objectives in turn, a step each. Hidden words (Devlin et al. 2019, section 3.1) of reports as
each mode of redaction leaves them, because that is what the encoder will read. Section matching
(Boecking et al. 2022, CXR-BERT): the impression that belongs to a findings section says the same in
other words. Image-report contrast (Zhang et al. 2022, ConVIRT) against the embedded vision encoder,
which stays as it is. The phantoms are of the seeds that no experiment uses; no label is used.
"""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from client.text.redaction import MODES
from client.text.studies import Cells, used_text
from common.files import write_atomic
from common.model.base import embedded_file
from common.model.text.embedded import LONGEST, build_embedded
from common.model.text.tokens import Tokens
from common.model.text.words import MASK, SPECIAL, VOCABULARY, hash_words, tokenize_words
from common.model.weights import load_weights
from simulations.phantom.cases import Population, sample_cases
from simulations.phantom.report import write_reports
from simulations.pretrain.__main__ import build
from simulations.pretrain.optimise import Schedule
from simulations.pretrain.radiographs import FIRST_RESERVED_SEED, Radiographs, draw_radiographs, scanned

PEAK_LR, SHARED, LENGTH = 1.5e-3, 128, 128
HIDDEN = 0.15
"""Share of words the encoder has to guess (Devlin et al. 2019)."""
FIRST_WORDS_SEED = FIRST_RESERVED_SEED + 500_000_000
"""Reports without a picture are drawn from here on, pictures from below."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """Reports without a picture."""

    texts: tuple[str, ...]
    """Whole reports, each as one mode of redaction after the other leaves it."""
    findings: tuple[str, ...]
    impressions: tuple[str, ...]
    """Of the same studies as ``findings``."""


def draw_texts(count: int) -> Written:
    """Write reports from reserved seeds."""
    cases = sample_cases(count, seed=FIRST_WORDS_SEED, population=Population(studies_per_patient=1.0))
    reports = write_reports(cases)
    texts = []
    for i, report in enumerate(reports):
        cells: Cells = (
            ("indication", report.indication),
            ("findings", report.findings),
            ("impression", report.impression),
        )
        texts.append(used_text(cells, MODES[i % len(MODES)])[0])
    return Written(
        tuple(texts), tuple(report.findings for report in reports), tuple(r.impression for r in reports)
    )


def image_features(data: Radiographs, seed: int) -> NDArray[np.float32]:
    """Return the embedded vision encoder's features ``[n, D]``, each image as a random scanner stored it.

    They are whitened along the batch: raw ones have most of their length in common.
    """
    net = build(seed)
    load_weights(net, embedded_file(), "head")
    net.eval()
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        parts = [net(scanned(data.pixels[i : i + 50], i, rng)) for i in range(0, len(data.pixels), 50)]
    features = torch.cat(parts).numpy()
    return np.asarray((features - features.mean(axis=0)) / features.std(axis=0), dtype=np.float32)


def hide(tokens: Tokens, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Hide words: returns ids ``[B, L]`` and targets, -100 where nothing is to be guessed.

    Of the words chosen, eight in ten become ``MASK``, one another word, one stays (Devlin et al. 2019).
    """
    chosen = tokens.mask & (tokens.ids >= SPECIAL) & (rng.random(tokens.ids.shape) < HIDDEN)
    kind = rng.random(tokens.ids.shape)
    other = rng.permutation(tokens.ids[tokens.ids >= SPECIAL])[: tokens.ids.size]
    other = np.resize(other if len(other) else np.array([SPECIAL]), tokens.ids.shape)
    ids = np.where(chosen & (kind < 0.8), MASK, np.where(chosen & (kind > 0.9), other, tokens.ids))
    targets = np.where(chosen, tokens.ids, -100)
    return torch.from_numpy(ids).long(), torch.from_numpy(targets).long()


class Objectives(nn.Module):
    """What both objectives add to the encoder; thrown away afterwards."""

    def __init__(self, net: nn.Module, width: int, image_width: int) -> None:
        super().__init__()
        self._net = [net]
        self.guess = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        self.text = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, SHARED))
        self.image = nn.Sequential(nn.Linear(image_width, 256), nn.GELU(), nn.Linear(256, SHARED))
        self.log_scales = nn.Parameter(torch.full((2,), math.log(10.0)))

    def _encode(self, ids: Tensor, mask: Tensor, offset: int) -> Tensor:
        positions = torch.arange(offset, offset + ids.shape[1])[None]
        return self._net[0](input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state

    def words(self, tokens: Tokens, offset: int, rng: np.random.Generator) -> Tensor:
        """Return the loss of guessing hidden words; the word embeddings score the guesses."""
        ids, targets = hide(tokens, rng)
        hidden = self._encode(ids, torch.from_numpy(tokens.mask), offset)
        asked = targets >= 0
        words = self._net[0].get_input_embeddings().weight  # type: ignore[operator]
        return functional.cross_entropy(self.guess(hidden[asked]) @ words.T + self.bias, targets[asked])

    def sections(self, findings: Tokens, impressions: Tokens, offset: int) -> Tensor:
        """Return the contrast of B findings sections and their impressions, on the features themselves."""
        return self._contrast(self._pooled(findings, offset), self._pooled(impressions, offset), 0)

    def pairs(self, tokens: Tokens, images: Tensor, offset: int) -> Tensor:
        """Return the contrast of B reports and features ``[B, D]`` of their images."""
        return self._contrast(self.text(self._pooled(tokens, offset)), self.image(images), 1)

    def _pooled(self, tokens: Tokens, offset: int) -> Tensor:
        mask = torch.from_numpy(tokens.mask)
        hidden = self._encode(torch.from_numpy(tokens.ids).long(), mask, offset)
        seen = mask[..., None].float()
        return (hidden * seen).sum(dim=1) / seen.sum(dim=1)

    def _contrast(self, one: Tensor, other: Tensor, which: int) -> Tensor:
        """Return the symmetric InfoNCE loss of ``[B, D]`` and ``[B, D]``."""
        one, other = functional.normalize(one, dim=-1), functional.normalize(other, dim=-1)
        logits = self.log_scales[which].exp().clamp(max=50.0) * one @ other.T
        own = torch.arange(len(one))
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def pretrain_text(
    net: nn.Module,
    written: Written,
    data: Radiographs,
    features: NDArray[np.float32],
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """Train the encoder in place.

    Every other batch begins at a random position, so that the positions beyond a phantom's report,
    which real ones reach, are trained as well.
    """
    torch.manual_seed(seed)
    objectives = Objectives(net, net.config.hidden_size, features.shape[1])  # type: ignore[union-attr,arg-type]
    schedule = Schedule([*net.parameters(), *objectives.parameters()], PEAK_LR, steps)
    rng = np.random.default_rng(seed)
    # neighbours have about the same length, so that a batch holds little padding
    texts = sorted(filter(None, written.texts), key=lambda text: len(hash_words(text)))
    words, reports = tokenize_words(texts, LENGTH), tokenize_words(data.reports, LENGTH)
    findings = tokenize_words(written.findings, LENGTH)
    impressions = tokenize_words(written.impressions, LENGTH)
    losses: dict[str, list[float]] = {"words": [], "sections": [], "pairs": []}
    for step in range(steps):
        offset = int(rng.integers(LONGEST - LENGTH)) if rng.random() < 0.5 else 0
        kind = list(losses)[step % 3]
        if kind == "words":
            first = int(rng.integers(max(1, len(words) - batch)))
            loss = objectives.words(
                _trimmed(words.take(range(first, min(first + batch, len(words))))), offset, rng
            )
        elif kind == "sections":
            rows = rng.choice(len(findings), batch, replace=False)
            loss = objectives.sections(
                _trimmed(findings.take(rows)), _trimmed(impressions.take(rows)), offset
            )
        else:
            rows = rng.choice(len(reports), batch, replace=False)
            loss = objectives.pairs(_trimmed(reports.take(rows)), torch.from_numpy(features[rows]), offset)
        schedule.step(loss, step)
        losses[kind].append(loss.item())
        if step % 60 == 59:
            means = [float(np.mean(some[-20:])) for some in losses.values()]
            logger.info("step %d of %d: words %.3f, sections %.3f, pairs %.3f", step + 1, steps, *means)


def _trimmed(tokens: Tokens) -> Tokens:
    """Cut off columns in which no text has a token."""
    longest = int(tokens.mask.sum(axis=1).max())
    return Tokens(tokens.ids[:, :longest], tokens.mask[:, :longest])


def main() -> None:
    """Draw, pretrain, write half-precision safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--texts", type=int, default=40_000)
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    written = draw_texts(options.texts)
    data = draw_radiographs(options.images)
    logger.info("%d reports written, %d radiographs drawn", len(written.texts), len(data.pixels))
    features = image_features(data, options.seed)
    logger.info("image features ready")
    net = build_embedded(options.seed)
    pretrain_text(net, written, data, features, options.steps, options.batch, options.seed)
    write_atomic(options.file, save({n: t.half().contiguous() for n, t in net.state_dict().items()}))


if __name__ == "__main__":
    main()
