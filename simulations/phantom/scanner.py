"""Scanners: what turns the same patient into different pictures at different sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from simulations.phantom.field import Map
from simulations.phantom.marker import stamp


@dataclass(frozen=True)
class Scanner:
    """One machine with its processing. Lengths in pixels refer to a 128-pixel image."""

    name: str
    manufacturer: str
    gamma: float = 1.0
    """Display exponent after the window; above 1 darkens."""
    contrast: float = 0.0
    """Slope of an extra sigmoid around mid-grey; 0 leaves the curve straight."""
    window: tuple[float, float] = (0.0, 1.0)
    """Signal shown as black and as white."""
    quantum: float = 0.004
    """Noise where much radiation arrives; grows fourfold towards the densest parts."""
    electronic: float = 0.003
    blur: float = 0.0
    """Standard deviation in pixels."""
    sharpen: float = 0.0
    """Weight of an unsharp mask of 2 pixels."""
    collimation: float = 0.0
    """Widest black shutter as a share of the side."""
    inverted: bool = False
    """Stored as MONOCHROME1: high values are dark."""
    burnt_marker: str = ""
    """Text of the workstation in the image, never about a patient."""
    bits: int = 8
    grid_lines: float = 0.0
    """Amplitude of an anti-scatter grid's moire."""
    vignette: float = 0.0
    """Fall-off towards one side (heel effect and uneven exposure)."""
    exposure: float = 0.02
    """Spread of brightness between two exposures."""
    modality: str = "DX"


SCANNERS: Mapping[str, Scanner] = {
    scanner.name: scanner
    for scanner in (
        Scanner("reference", "Phantom Imaging", window=(0.02, 1.0), blur=0.3, sharpen=0.25),
        Scanner(
            "flat_panel", "Aurora Medical", gamma=0.85, contrast=2.2, window=(0.0, 0.96), quantum=0.0025,
            sharpen=0.9, collimation=0.03, bits=12,
        ),
        Scanner(
            "portable", "Wardline", gamma=0.80, window=(-0.14, 1.10), quantum=0.008, electronic=0.004,
            blur=0.75, collimation=0.07, burnt_marker="PORTABLE", grid_lines=0.012, vignette=0.16,
            exposure=0.06,
        ),
        Scanner(
            "cr_plate", "Koban Plates", gamma=1.25, contrast=1.0, window=(0.03, 0.98), quantum=0.004,
            blur=0.45, sharpen=0.5, collimation=0.05, burnt_marker="ERECT", bits=12, vignette=0.05,
            exposure=0.04, modality="CR",
        ),
        Scanner(
            "old_film", "Silverline Digitizers", gamma=1.3, contrast=2.4, window=(0.05, 0.93),
            quantum=0.008, electronic=0.004, blur=1.0, collimation=0.02, vignette=0.10, exposure=0.07,
            modality="CR",
        ),
        Scanner(
            "inverted_dr", "Borealis", gamma=0.95, window=(-0.05, 1.05), quantum=0.004, blur=0.2,
            sharpen=0.4, inverted=True, bits=16, collimation=0.03,
        ),
        Scanner(
            "soft_dr", "Meridian X-Ray", gamma=0.75, contrast=-1.2, window=(-0.05, 1.0), quantum=0.003,
            blur=0.35, burnt_marker="MERIDIAN", bits=8, exposure=0.03,
        ),
    )
}  # fmt: skip


def apply_scanner(
    images: NDArray[np.float32], scanner: Scanner, *, seed: int, index: NDArray[np.int64]
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Expose, process and store ``images`` ``[n, H, W]``; ``index`` names each one's noise.

    The values are as stored: for an inverted scanner, high means dark.
    """
    top = 2**scanner.bits - 1
    out = np.empty(images.shape, np.uint8 if scanner.bits <= 8 else np.uint16)
    for row, (image, i) in enumerate(zip(images, index, strict=True)):
        rng = np.random.default_rng([seed, 23, int(i)])
        shown = _expose(image, scanner, rng)
        if scanner.inverted:
            shown = 1 - shown
        out[row] = np.round(shown * np.float32(top))
    return out


def _expose(image: Map, scanner: Scanner, rng: np.random.Generator) -> Map:
    """Return one displayed image in [0, 1], white bright."""
    side = image.shape[0]
    unit = side / 128
    u, z = rng.random(6), rng.standard_normal(3)
    signal = image + np.float32(scanner.exposure * z[0])
    if scanner.vignette:
        ramp = np.linspace(-1, 1, side, dtype=np.float32)
        tilt = np.cos(6.283 * u[0]) * ramp[None, :] + np.sin(6.283 * u[0]) * ramp[:, None]
        signal = signal + np.float32(scanner.vignette) * (tilt.astype(np.float32) * 0.5)
    if scanner.blur:
        signal = gaussian_filter(signal, scanner.blur * unit)
    # Finer pixels catch fewer quanta each.
    grain = np.float32(0.8 * scanner.quantum * unit**0.5) * np.exp(np.float32(1.4) * image)
    signal = signal + np.hypot(grain, np.float32(scanner.electronic)) * rng.standard_normal(
        image.shape, dtype=np.float32
    )
    if scanner.grid_lines:
        waves = np.sin(np.arange(side, dtype=np.float32) * np.float32(2.2 / unit) + np.float32(6 * u[1]))
        signal = signal + np.float32(scanner.grid_lines) * waves[None, :]
    if scanner.sharpen:
        signal = signal + np.float32(scanner.sharpen) * (signal - gaussian_filter(signal, 2 * unit))
    low, high = scanner.window
    shown = np.clip((signal - np.float32(low)) / np.float32(high - low), 0, 1)
    shown = shown ** np.float32(scanner.gamma)
    if scanner.contrast > 0:
        edge = np.float32(1 / (1 + np.exp(scanner.contrast / 2)))
        shown = (1 / (1 + np.exp(-np.float32(scanner.contrast) * (shown - np.float32(0.5)))) - edge) / (
            1 - 2 * edge
        )
    elif scanner.contrast < 0:
        shown = np.float32(0.12) + np.float32(0.76) * shown
    if scanner.collimation:
        cut = np.floor(u[2:6] ** 2 * scanner.collimation * side).astype(int)
        shown[: cut[0]] = 0
        shown[side - cut[1] :] = 0
        shown[:, : cut[2]] = 0
        shown[:, side - cut[3] :] = 0
    if scanner.burnt_marker:
        stamp(shown, scanner.burnt_marker, 0.02, 0.03 if z[2] < 0 else 0.66, 0.030, 0.97)
    final: Map = np.clip(shown, 0, 1)
    return final
