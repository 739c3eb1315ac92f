"""Masked-image pretraining: paint the hidden patches of a radiograph (He et al. 2022).

The encoder sees a quarter of the patches of a radiograph as some scanner stored it; a throw-away
decoder paints the hidden patches of the same radiograph as it was before the scanner. So the
features describe anatomy rather than the machine.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from simulations.pretrain.optimise import Schedule
from simulations.pretrain.radiographs import SIZE, Radiographs, scanned

PATCH, KEEP = 8, 0.25
PEAK_LR = 1.5e-3
logger = logging.getLogger(__name__)


class Decoder(nn.Module):
    """Two narrow transformer blocks that paint every patch; thrown away after pretraining."""

    def __init__(self, width: int, tokens: int, inner: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.position = nn.Parameter(torch.randn(1, tokens, inner) * 0.02)
        self.blocks = nn.Sequential(*(Block(inner, num_heads=2, mlp_ratio=2) for _ in range(2)))
        self.paint = nn.Linear(inner, PATCH * PATCH)

    def forward(self, visible: Tensor, kept: Tensor) -> Tensor:
        """Map ``[B, K, D]`` and the kept positions ``[B, K]`` to patches ``[B, T, P * P]``."""
        tokens = self.embed(self.norm(visible))
        whole = self.mask_token.to(tokens.dtype).repeat(len(tokens), self.position.shape[1], 1)
        whole = whole.scatter(1, kept[..., None].expand(-1, -1, tokens.shape[-1]), tokens)
        painted: Tensor = self.paint(self.blocks(whole + self.position))
        return painted


def patches(images: Tensor) -> Tensor:
    """Cut ``[B, S, S]`` into ``[B, T, P * P]``."""
    side = SIZE // PATCH
    cut = images.reshape(-1, side, PATCH, side, PATCH).permute(0, 1, 3, 2, 4)
    return cut.reshape(len(images), side * side, PATCH * PATCH)


def encode_visible(
    net: nn.Module, images: Tensor, keep: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Run the encoder on a random share of the patches; returns tokens and their positions."""
    tokens = net.patch_embed(images) + net.pos_embed  # type: ignore[operator]
    order = torch.rand(tokens.shape[:2], generator=generator).argsort(dim=1)
    kept = order[:, : int(keep * tokens.shape[1])]
    visible = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
    return net.blocks(visible), kept  # type: ignore[operator]


def reconstruction_loss(painted: Tensor, clean: Tensor, kept: Tensor) -> Tensor:
    """Mean squared error on hidden patches, each normalised by itself (He et al. 2022, section 3)."""
    target = patches(clean)
    spread = target.var(dim=-1, keepdim=True)
    target = (target - target.mean(dim=-1, keepdim=True)) / (spread + 1e-4).sqrt()
    hidden = torch.ones(target.shape[:2]).scatter(1, kept, 0.0)
    error = (painted - target).square().mean(dim=-1)
    return (error * hidden).sum() / hidden.sum()


def pretrain_masked(net: Any, data: Radiographs, steps: int, batch: int, seed: int) -> None:
    """Train the encoder in place; the decoder is thrown away."""
    decoder = Decoder(net.embed_dim, net.pos_embed.shape[1])
    schedule = Schedule([*net.parameters(), *decoder.parameters()], PEAK_LR, steps)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = np.sort(rng.choice(len(data.pixels), batch, replace=False))
        clean = data.pixels[rows]
        visible, kept = encode_visible(net, scanned(clean, step, rng), KEEP, generator)
        painted = decoder(visible, kept)
        loss = reconstruction_loss(painted, torch.from_numpy(clean).float() / 255, kept)
        schedule.step(loss, step)
        if step % 100 == 0:
            logger.info("masked step %d of %d, loss %.4f", step, steps, loss.item())
