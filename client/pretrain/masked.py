"""Masked-image pretraining: paint the patches of a radiograph that the encoder did not see.

On a ViT as He et al. 2022 (MAE): the encoder runs on the visible patches alone and a small transformer
paints the hidden ones. A CNN cannot leave pixels out: hidden patches are blanked in its input and one linear
layer paints them, as Xie et al. 2022 (SimMIM, section 3.3) do. Either way the loss is over hidden patches.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
from timm.models.vision_transformer import Block

from client.pretrain.pretext import from_seed
from common.model.architecture import Architecture
from common.model.build import CxrModel
from common.model.pretext import feature_grid
from common.seeds import derive

_HEAD_WIDTH = 32
_SMALL = 1e-4
"""Added to a patch's variance: a black patch is not blown up into noise."""


class Decoder(nn.Module):
    """Two narrow transformer blocks that paint every patch; thrown away after pretraining.

    He et al. 2022 (table 1a) find that a shallow decoder serves fine-tuning as well as a deep one.
    """

    def __init__(self, width: int, tokens: int, side: int, inner: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.position = nn.Parameter(torch.randn(1, tokens, inner) * 0.02)
        heads = inner // _HEAD_WIDTH
        self.blocks = nn.Sequential(*(Block(inner, num_heads=heads, mlp_ratio=2) for _ in range(2)))
        self.paint = nn.Linear(inner, side * side)

    def forward(self, visible: Tensor, kept: Tensor) -> Tensor:
        """Map ``[B, K, D]`` and the kept positions ``[B, K]`` to patches ``[B, T, P * P]``."""
        tokens = self.embed(self.norm(visible))
        whole = self.mask_token.to(tokens.dtype).repeat(len(tokens), self.position.shape[1], 1)
        whole = whole.scatter(1, kept[..., None].expand(-1, -1, tokens.shape[-1]), tokens)
        painted: Tensor = self.paint(self.blocks(whole + self.position))
        return painted


class LinearDecoder(nn.Module):
    """One linear layer from each place of a feature map to the patch it stands for."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.paint = nn.Linear(width, side * side)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, D, H, W]`` to patches ``[B, H * W, P * P]``."""
        painted: Tensor = self.paint(self.norm(features.flatten(2).transpose(1, 2)))
        return painted


def patches(images: Tensor, side: int) -> Tensor:
    """Cut ``[B, S, S]`` into ``[B, T, P * P]``, row by row; P is ``side``."""
    count = images.shape[-1] // side
    cut = images.reshape(-1, count, side, count, side).permute(0, 1, 3, 2, 4)
    return cut.reshape(len(images), count * count, side * side)


def draw_kept(batch: int, tokens: int, keep: float, generator: torch.Generator) -> Tensor:
    """Draw which of ``tokens`` patches of each image are seen, ``[B, K]``: at least one, and not all."""
    order = torch.rand((batch, tokens), generator=generator).argsort(dim=1)
    return order[:, : min(tokens - 1, max(1, int(keep * tokens)))]


def encode_visible(net: Any, arch: Architecture, images: Tensor, kept: Tensor) -> Tensor:
    """Run a ViT on the kept patches of ``[B, C, S, S]`` alone; returns their tokens ``[B, K, D]``.

    A class token and registers go along, and are left out of what is returned.
    """
    tokens, extra = arch.stem(net, images), net.num_prefix_tokens
    places = kept[..., None].expand(-1, -1, tokens.shape[-1])
    visible = torch.cat([tokens[:, :extra], tokens[:, extra:].gather(1, places)], dim=1)
    return arch.run(net, visible, 0, len(arch.blocks))[:, extra:]


def reconstruction_loss(painted: Tensor, clean: Tensor, kept: Tensor) -> Tensor:
    """Mean squared error on hidden patches, each normalised by itself (He et al. 2022, section 3).

    ``painted`` is ``[B, T, P * P]``, ``clean`` the grey images ``[B, S, S]``, ``kept`` ``[B, K]``.
    """
    target = patches(clean, round(painted.shape[-1] ** 0.5))
    spread = target.var(dim=-1, keepdim=True)
    target = (target - target.mean(dim=-1, keepdim=True)) / (spread + _SMALL).sqrt()
    hidden = torch.ones(target.shape[:2], device=target.device).scatter(1, kept, 0.0)
    error = (painted - target).square().mean(dim=-1)
    return (error * hidden).sum() / hidden.sum()


class MaskedImage(nn.Module):
    """The task at a site: a model's encoder, and the decoder that is thrown away."""

    def __init__(self, model: CxrModel, share: float) -> None:
        super().__init__()
        self._model, self._keep = model, 1 - share
        width, self._grid, self._side = feature_grid(model)
        seed = derive(model.config.seed, "decoder")
        self.decoder: nn.Module
        if model.arch.family == "vit":
            inner = max(2 * _HEAD_WIDTH, width // 2 // _HEAD_WIDTH * _HEAD_WIDTH)
            self.decoder = from_seed(lambda: Decoder(width, self._grid**2, self._side, inner), seed)
        else:
            self.decoder = from_seed(lambda: LinearDecoder(width, self._side), seed)

    def forward(self, images: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of normalised images ``[B, C, S, S]`` and their grey values ``[B, 1, S, S]``."""
        net, arch = self._model.net, self._model.arch
        kept = draw_kept(len(images), self._grid**2, self._keep, generator).to(images.device)
        if arch.family == "vit":
            painted = self.decoder(cast(Any, net).norm(encode_visible(net, arch, images, kept)), kept)
        else:
            shown = self._blanked(images, kept)
            painted = self.decoder(arch.run(net, arch.stem(net, shown), 0, len(arch.blocks)))
        return reconstruction_loss(painted.float(), grey[:, 0], kept)

    def _blanked(self, images: Tensor, kept: Tensor) -> Tensor:
        """Set hidden patches to the mean grey value, which is 0 in normalised images."""
        seen = torch.zeros((len(images), self._grid**2), device=images.device).scatter(1, kept, 1.0)
        seen = seen.reshape(-1, 1, self._grid, self._grid)
        return images * seen.repeat_interleave(self._side, dim=2).repeat_interleave(self._side, dim=3)
