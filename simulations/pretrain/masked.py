"""Masked-image pretraining of the embedded backbone: paint the hidden patches (He et al. 2022).

The encoder sees a quarter of the patches of a radiograph as some scanner stored it; a throw-away
decoder paints the hidden patches of the same radiograph as it was before the scanner. So the
features describe anatomy rather than the machine. The parts are those a site pretrains with.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.pretrain.masked import Decoder, draw_kept, encode_visible, reconstruction_loss
from common.model.architecture import architecture_of
from simulations.pretrain.optimise import Schedule
from simulations.pretrain.radiographs import SIZE, Radiographs, scanned

PATCH, KEEP = 8, 0.25
PEAK_LR = 1.5e-3
logger = logging.getLogger(__name__)


def encode_some(net: Any, images: Tensor, keep: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Run the encoder on a random share of the patches; returns tokens and their positions."""
    kept = draw_kept(len(images), (SIZE // PATCH) ** 2, keep, generator)
    return encode_visible(net, architecture_of(net), images, kept), kept


def pretrain_masked(net: Any, data: Radiographs, steps: int, batch: int, seed: int) -> None:
    """Train the encoder in place; the decoder is thrown away."""
    decoder = Decoder(net.embed_dim, net.pos_embed.shape[1], PATCH)
    schedule = Schedule([*net.parameters(), *decoder.parameters()], PEAK_LR, steps)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = np.sort(rng.choice(len(data.pixels), batch, replace=False))
        clean = data.pixels[rows]
        visible, kept = encode_some(net, scanned(clean, step, rng), KEEP, generator)
        painted = decoder(visible, kept)
        loss = reconstruction_loss(painted, torch.from_numpy(clean).float() / 255, kept)
        schedule.step(loss, step)
        if step % 100 == 0:
            logger.info("masked step %d of %d, loss %.4f", step, steps, loss.item())
