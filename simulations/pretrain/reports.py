"""Image-report pretraining: find the report that belongs to a radiograph (Zhang et al. 2022, ConVIRT).

A symmetric InfoNCE loss over a batch pulls the pooled features of half the patches of a radiograph
to a small embedding of its report's words, and pushes the other reports of the batch away. The text
side is a bag of hashed word n-grams, thrown away afterwards.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from client.pretrain.contrast import Projections
from simulations.pretrain.masked import encode_some
from simulations.pretrain.optimise import Schedule
from simulations.pretrain.radiographs import Radiographs, scanned

KEEP, PEAK_LR, WORDS = 0.5, 1e-3, 256
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
    """Brings pooled image features and the words of reports together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, WORDS, mode="mean")
        self.projections = Projections(width, WORDS)

    def forward(self, pooled: Tensor, ngrams: Sequence[list[int]]) -> Tensor:
        """Return the symmetric InfoNCE loss of ``[B, D]`` features and B reports."""
        offsets = torch.tensor([0, *np.cumsum([len(n) for n in ngrams[:-1]]).tolist()])
        flat = torch.tensor([bucket for report in ngrams for bucket in report])
        loss: Tensor = self.projections(pooled, self.words(flat, offsets))
        return loss


def pretrain_reports(net: nn.Module, data: Radiographs, steps: int, batch: int, seed: int) -> None:
    """Train the encoder in place; the text side is thrown away."""
    torch.manual_seed(seed)
    pairing = Pairing(net.embed_dim)  # type: ignore[arg-type]
    schedule = Schedule([*net.parameters(), *pairing.parameters()], PEAK_LR, steps)
    rng, generator = np.random.default_rng(seed + 1), torch.Generator().manual_seed(seed + 1)
    ngrams = [hashed_ngrams(report) for report in data.reports]
    for step in range(steps):
        rows = np.sort(rng.choice(len(data.pixels), batch, replace=False))
        tokens, _ = encode_some(net, scanned(data.pixels[rows], step, rng), KEEP, generator)
        pooled = net.fc_norm(tokens.mean(dim=1))  # type: ignore[operator]
        loss = pairing(pooled, [ngrams[row] for row in rows])
        schedule.step(loss, step)
        if step % 50 == 0:
            logger.info("reports step %d of %d, loss %.4f", step, steps, loss.item())
