"""Pretrain the embedded backbone: ``python -m simulations.pretrain FILE``.

A masked autoencoder (He et al. 2022) on procedural radiographs whose seeds no experiment uses.
The encoder sees a quarter of the patches of a radiograph as some scanner stored it; a throw-away
decoder paints the hidden patches of the same radiograph as it was before the scanner. So the
features describe anatomy rather than the machine, and no label is used.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
import timm
from timm.models.vision_transformer import Block
from common.files import write_atomic
from common.model.build import EMBEDDED_MEAN, EMBEDDED_STD, embedded_architecture
from simulations.phantom.cases import Population, sample_cases
from simulations.phantom.render import render
from simulations.phantom.scanner import SCANNERS, apply_scanner

FIRST_RESERVED_SEED = 1_000_000_000
"""Experiments draw phantoms from seeds below this; pretraining from here on."""
SIZE, PATCH, KEEP, PEAK_LR = 96, 8, 0.25, 1.5e-3
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


def encode_visible(net: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Run the encoder on a random quarter of the patches; returns tokens and their positions."""
    tokens = net.patch_embed(images) + net.pos_embed  # type: ignore[operator]
    order = torch.rand(tokens.shape[:2], generator=generator).argsort(dim=1)
    kept = order[:, : int(KEEP * tokens.shape[1])]
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


def draw_radiographs(count: int) -> NDArray[np.uint8]:
    """Render ``[count, S, S]`` radiographs before any scanner, from reserved seeds."""
    whole = np.empty((count, SIZE, SIZE), dtype=np.uint8)
    chunk = 1000
    for start in range(0, count, chunk):
        n = min(chunk, count - start)
        population = Population(studies_per_patient=1.0)
        cases = sample_cases(n, seed=FIRST_RESERVED_SEED + start, population=population)
        whole[start : start + n] = np.round(render(cases, SIZE) * 255)
    return whole


def scanned(clean: NDArray[np.uint8], step: int, rng: np.random.Generator) -> Tensor:
    """Store a batch as some scanner would: normalised ``[B, 1, S, S]``."""
    scanner = SCANNERS[rng.choice(list(SCANNERS))]
    index = rng.integers(0, 2**31, len(clean))
    stored = apply_scanner(clean / np.float32(255), scanner, seed=step, index=index)
    grey = stored.astype(np.float32) / (2**scanner.bits - 1)
    grey = 1 - grey if scanner.inverted else grey
    return (torch.from_numpy(grey)[:, None] - EMBEDDED_MEAN) / EMBEDDED_STD


def pretrain(images: NDArray[np.uint8], steps: int, batch: int, seed: int = 0) -> nn.Module:
    """Train the encoder; returns it without its decoder."""
    torch.manual_seed(seed)
    arguments = embedded_architecture()
    net = timm.create_model(arguments.pop("model_name"), img_size=SIZE, num_classes=0, **arguments)
    decoder = Decoder(net.embed_dim, net.pos_embed.shape[1])
    parameters = [*net.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.05)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    warmup = steps // 20
    for step in range(steps):
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * factor
        rows = np.sort(rng.choice(len(images), batch, replace=False))
        clean = images[rows]
        visible, kept = encode_visible(net, scanned(clean, step, rng), generator)
        painted = decoder(visible, kept)
        loss = reconstruction_loss(painted, torch.from_numpy(clean).float() / 255, kept)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            logger.info("step %d of %d, loss %.4f", step, steps, loss.item())
    return net


def main() -> None:
    """Draw, pretrain, write half-precision safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    images = draw_radiographs(options.images)
    logger.info("%d radiographs drawn", len(images))
    net = pretrain(images, options.steps, options.batch, options.seed)
    write_atomic(options.file, save({n: t.half().contiguous() for n, t in net.state_dict().items()}))


if __name__ == "__main__":
    main()
