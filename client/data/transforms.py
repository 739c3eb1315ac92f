"""From a decoded image to what a network sees: one size, 8 bits, augmented and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

Fit = Literal["crop", "pad"]

MAX_ROTATION = 10.0
"""Degrees at strength 1; a patient is seldom more askew."""
MAX_SHIFT = 0.1
"""Of the side, at strength 1."""
MAX_SCALE = 0.1
"""Factor 1 - this to 1 + this, at strength 1."""
MAX_TONE = 0.2
"""Brightness added and contrast changed, at strength 1."""


def standardise(image: NDArray[np.float32], size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """Bring ``[H, W]`` in [0, 1] to ``[size, size]`` in 8 bits, with antialiasing.

    ``crop`` scales the short side and keeps the centre square, so the anatomy fills the frame
    and the ends of the long side are lost; ``pad`` scales the long side and adds black. The
    aspect ratio is kept either way.
    """
    height, width = image.shape
    short, long = min(height, width), max(height, width)
    # "F" keeps the precision of 12-bit detectors until the last step.
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    if fit == "crop":
        left, top = (width - short) / 2, (height - short) / 2
        # Cropping inside the resize: a 1 x 60,000 image never becomes 224 x 13 million.
        box = (left, top, left + short, top + short)
        square = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
    else:
        inner_h, inner_w = (max(1, round(side * size / long)) for side in (height, width))
        inner = np.asarray(picture.resize((inner_w, inner_h), Image.Resampling.BILINEAR))
        top, left = (size - inner_h) // 2, (size - inner_w) // 2
        square = np.zeros((size, size), dtype=np.float32)
        square[top : top + inner_h, left : left + inner_w] = inner
    return np.asarray(np.rint(np.clip(square, 0.0, 1.0) * 255), dtype=np.uint8)


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
    draws = torch.rand((6, len(batch)), generator=generator, device=generator.device).to(batch)
    turn, scale, right, down, light, contrast = (2 * draws - 1) * strength
    theta = _affine(turn * MAX_ROTATION, 1 + scale * MAX_SCALE, right * MAX_SHIFT, down * MAX_SHIFT)
    if flip:
        mirror = torch.rand(len(batch), generator=generator, device=generator.device).to(batch) < 0.5
        theta[mirror, :, 0] *= -1
    grid = affine_grid(theta, list(batch.shape), align_corners=False)  # [B, H, W, 2]
    moved = grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    gain = (1 + contrast * MAX_TONE).view(-1, 1, 1, 1)
    toned: Tensor = (moved - mean) * gain + mean + (light * MAX_TONE).view(-1, 1, 1, 1)
    return toned.clamp(0, 1)


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
