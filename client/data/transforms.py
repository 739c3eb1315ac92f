"""From a decoded image to what is kept of it: one size, 8 bits."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Fit = Literal["crop", "pad"]


def standardise(image: NDArray[np.float32] | Image.Image, size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """Bring ``[H, W]`` in [0, 1], or a picture of mode L or F, to ``[size, size]`` in 8 bits, antialiased.

    ``crop`` scales the short side and keeps the centre square, so the anatomy fills the frame
    and the ends of the long side are lost; ``pad`` scales the long side and adds black. The
    aspect ratio is kept either way.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    # "F" keeps the precision of 12-bit detectors until the last step; "L" is as exact as 8 bits are.
    width, height = image.size
    short, long = min(height, width), max(height, width)
    if fit == "crop":
        left, top = (width - short) / 2, (height - short) / 2
        # Cropping inside the resize: a 1 x 60,000 image never becomes 224 x 13 million.
        box = (left, top, left + short, top + short)
        square = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    else:
        inner_h, inner_w = (max(1, round(side * size / long)) for side in (height, width))
        inner = np.asarray(image.resize((inner_w, inner_h), Image.Resampling.BILINEAR))
        top, left = (size - inner_h) // 2, (size - inner_w) // 2
        square = np.zeros((size, size), dtype=inner.dtype)
        square[top : top + inner_h, left : left + inner_w] = inner
    if image.mode == "L":
        return square
    return np.asarray(np.rint(np.clip(square, 0.0, 1.0) * 255), dtype=np.uint8)
