"""From kept pixels to what a network sees: augmented and normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from common.seeds import torch_generator

MAX_ROTATION = 10.0
"""Degrees at strength 1; a patient is seldom more askew."""
MAX_SHIFT = 0.1
"""Of the side, at strength 1."""
MAX_SCALE = 0.1
"""Factor 1 - this to 1 + this, at strength 1."""
MAX_TONE = 0.2
"""Brightness added and contrast changed, at strength 1."""
DRAWS = 6
"""Numbers in [0, 1) that decide how one image is changed."""


def to_float(batch: Tensor) -> Tensor:
    """Turn uint8 ``[B, H, W]`` into float ``[B, 1, H, W]`` in [0, 1]."""
    return batch.unsqueeze(1).float() / 255


def augment(batch: Tensor, strength: float, generator: torch.Generator, *, flip: bool = False) -> Tensor:
    """Rotate, scale, shift and re-tone each image of float ``[B, 1, H, W]`` in [0, 1] at random.

    Strength 0 is the identity, 1 the full ranges above. What comes in from outside is black.
    Mirroring is off by default: the heart is on the left, and the mirror image of a normal
    chest is a finding.
    """
    if strength == 0 and not flip:
        return batch
    draws = torch.rand((DRAWS, len(batch)), generator=generator, device=generator.device)
    mirror = torch.rand(len(batch), generator=generator, device=generator.device) < 0.5 if flip else None
    return augment_as(batch, strength, draws, mirror)


def augment_as(batch: Tensor, strength: float, draws: Tensor, mirror: Tensor | None = None) -> Tensor:
    """Augment float ``[B, 1, H, W]`` in [0, 1] as ``draws`` ``[6, B]`` in [0, 1) say; 0.5 leaves it as it is.

    ``mirror`` ``[B]`` marks the images that are mirrored first.
    """
    turn, scale, right, down, light, contrast = (2 * draws.to(batch) - 1) * strength
    theta = _affine(turn * MAX_ROTATION, 1 + scale * MAX_SCALE, right * MAX_SHIFT, down * MAX_SHIFT)
    if mirror is not None:
        theta[mirror.to(theta.device), :, 0] *= -1
    grid = affine_grid(theta, list(batch.shape), align_corners=False)  # [B, H, W, 2]
    moved = grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    gain = (1 + contrast * MAX_TONE).view(-1, 1, 1, 1)
    toned: Tensor = (moved - mean) * gain + mean + (light * MAX_TONE).view(-1, 1, 1, 1)
    return toned.clamp(0, 1)


def view_draws(digest: bytes, view: int) -> Tensor:
    """Return the draws ``[6]`` of an image's fixed view, from 1: the same in every run, at every site.

    ``digest`` stands for the image, so a view does not depend on what lies beside it.
    """
    return torch.rand(DRAWS, generator=torch_generator(0, "view", view, digest.hex()))


def _affine(degrees: Tensor, scale: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Lay out ``[B, 2, 3]``: where each output pixel looks, in coordinates from -1 to 1."""
    angle = torch.deg2rad(degrees)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [torch.stack([cos, -sin, 2 * right], 1), torch.stack([sin, cos, 2 * down], 1)]
    return torch.stack(rows, dim=1)


def normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float], channels: int = 3) -> Tensor:
    """Give the backbone its channels: ``[B, C, H, W]``, less the mean, over the deviation.

    Takes uint8 ``[B, H, W]`` or float ``[B, 1, H, W]`` in [0, 1]. One grey value stands in every
    channel; ``mean`` and ``std`` have one entry, or one per channel.
    """
    grey = to_float(batch) if batch.dtype == torch.uint8 else batch
    centre = torch.tensor(mean, dtype=grey.dtype, device=grey.device).view(1, -1, 1, 1)
    spread = torch.tensor(std, dtype=grey.dtype, device=grey.device).view(1, -1, 1, 1)
    images: Tensor = (grey.expand(-1, channels, -1, -1) - centre) / spread
    return images
