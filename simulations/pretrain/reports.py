"""Image-report pretraining: find the report that belongs to a radiograph (Zhang et al. 2022, ConVIRT).

A symmetric InfoNCE loss over a batch pulls the pooled features of half the patches of a radiograph
to a small embedding of its report's words, and pushes the other reports of the batch away. The text
side is a bag of hashed word n-grams, thrown away afterwards.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simulations.pretrain.masked import encode_visible
from simulations.pretrain.optimise import Schedule
from simulations.pretrain.radiographs import Radiographs, scanned

KEEP, PEAK_LR, SHARED = 0.5, 1e-3, 128
BUCKETS, LONGEST = 8192, 4
"""Hash buckets, and the longest n-gram: "no evidence of effusion" is one."""
logger = logging.getLogger(__name__)


def hashed_ngrams(report: str) -> list[int]:
    """Return the buckets of a report's word n-grams, sentence by sentence.

    >>> len(hashed_ngrams("No effusion. Clear lungs."))
    6
    """
    buckets = []
    for sentence in re.split(r"[.;\n]", report.lower()):
        words = re.findall(r"[a-z]+", sentence)
        for length in range(1, LONGEST + 1):
            for i in range(len(words) - length + 1):
                text = " ".join(words[i : i + length])
                buckets.append(zlib.crc32(text.encode()) % BUCKETS)
    return buckets


class Pairing(nn.Module):
    """Projects pooled image features and reports into one space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, 256, mode="mean")
        self.text = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, SHARED))
        self.image = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, SHARED))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, pooled: Tensor, ngrams: Sequence[list[int]]) -> Tensor:
        """Return the symmetric InfoNCE loss of ``[B, D]`` features and B reports."""
        offsets = torch.tensor([0, *np.cumsum([len(n) for n in ngrams[:-1]]).tolist()])
        flat = torch.tensor([bucket for report in ngrams for bucket in report])
        image = functional.normalize(self.image(pooled), dim=-1)
        text = functional.normalize(self.text(self.words(flat, offsets)), dim=-1)
        logits = self.log_scale.exp().clamp(max=50.0) * image @ text.T
        own = torch.arange(len(pooled))
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def pretrain_reports(net: nn.Module, data: Radiographs, steps: int, batch: int, seed: int) -> None:
    """Train the encoder in place; the text side is thrown away."""
    torch.manual_seed(seed)
    pairing = Pairing(net.embed_dim)  # type: ignore[arg-type]
    schedule = Schedule([*net.parameters(), *pairing.parameters()], PEAK_LR, steps)
    rng, generator = np.random.default_rng(seed + 1), torch.Generator().manual_seed(seed + 1)
    ngrams = [hashed_ngrams(report) for report in data.reports]
    for step in range(steps):
        rows = np.sort(rng.choice(len(data.pixels), batch, replace=False))
        tokens, _ = encode_visible(net, scanned(data.pixels[rows], step, rng), KEEP, generator)
        pooled = net.fc_norm(tokens.mean(dim=1))  # type: ignore[operator]
        loss = pairing(pooled, [ngrams[row] for row in rows])
        schedule.step(loss, step)
        if step % 50 == 0:
            logger.info("reports step %d of %d, loss %.4f", step, steps, loss.item())
