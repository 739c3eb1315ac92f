"""Lettering: lead markers laid on the cassette and text burnt in by a workstation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simulations.phantom.field import Map


@lru_cache(maxsize=64)
def lettering(text: str, height: int) -> Map:
    """Return ``text`` as coverage in [0, 1], about ``height`` pixels tall."""
    scale = 4
    font = ImageFont.load_default(size=max(4, height) * scale * 1.3)
    left, top, right, bottom = (round(v) for v in font.getbbox(text))
    sheet = Image.new("L", (right - left + 2 * scale, bottom - top + 2 * scale))
    ImageDraw.Draw(sheet).text((scale - left, scale - top), text, fill=255, font=font)
    small = (max(1, sheet.width // scale), max(1, sheet.height // scale))
    return np.asarray(sheet.resize(small, Image.Resampling.BOX), np.float32) / 255


def stamp(image: Map, text: str, row: float, col: float, height: float, value: float) -> Map:
    """Write ``text`` with its upper left corner at ``row, col`` (shares of the side), in place."""
    side = image.shape[0]
    mask = lettering(text, max(4, round(height * side)))
    r = min(max(round(row * side), 0), side - 1)
    c = min(max(round(col * side), 0), side - 1)
    part = image[r : r + mask.shape[0], c : c + mask.shape[1]]
    mask = mask[: part.shape[0], : part.shape[1]]
    part += mask * (np.float32(value) - part)
    return image


def laterality(image: Map, rng: np.random.Generator) -> Map:
    """Lay an "L" by the patient's left shoulder or an "R" by the right one; sometimes none."""
    u = rng.random(4)
    if u[0] < 0.12:
        return image
    left = u[1] < 0.6
    col = 0.90 - 0.06 * u[2] if left else 0.03 + 0.06 * u[2]
    return stamp(image, "L" if left else "R", 0.03 + 0.14 * u[3], col, 0.045, 0.93)
