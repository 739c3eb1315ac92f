"""One image file to grey values in [0, 1]: PNG and JPEG here, DICOM in `client.data.dicom`."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.data import dicom
from client.data.reasons import MAX_BYTES, MAX_PIXELS, RefusedImage

CHANNEL_TOLERANCE = 8
"""Largest difference of two channels, of 255, in a grey image that was stored as colour JPEG."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


class Decoded(NamedTuple):
    """Grey values ``[H, W]`` in [0, 1], and the view where the file itself tells it."""

    pixels: NDArray[np.float32]
    view: str


def decode(path: Path) -> NDArray[np.float32]:
    """Read one image as ``[H, W]`` in [0, 1], bright where the radiograph is bright.

    Raises:
        RefusedImage: with a `reason` of `client.data.reasons`; the text names no file.
    """
    return read_image(path).pixels


def read_image(path: Path) -> Decoded:
    """Read one image and its view, telling formats by their first bytes, not by their name.

    Raises:
        RefusedImage: as `decode`.
    """
    try:
        with _open(path) as file:
            return _read(path, file)
    except (RefusedImage, MemoryError):
        raise
    except OSError as error:
        # Pillow says "image file is truncated (n bytes not processed)" and "broken data stream".
        cut = "truncated" in str(error)
        raise RefusedImage("truncated" if cut else "decode", _why(error)) from None
    except Exception as error:  # noqa: BLE001
        # Decoders meet hostile files: whatever they raise is about this one image, and its
        # text, which may quote a header, goes no further.
        raise RefusedImage("decode", _why(error)) from None


def _open(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RefusedImage("not-an-image", "not a regular file")
        if status.st_size > MAX_BYTES:
            raise RefusedImage("too-large", f"more than {MAX_BYTES} bytes")
        return path.open("rb")
    except OSError as error:
        raise RefusedImage("missing", f"the file cannot be opened ({type(error).__name__})") from None


def _why(error: Exception) -> str:
    return f"the decoder stopped ({type(error).__name__})"


def _read(path: Path, file: BinaryIO) -> Decoded:
    head = file.read(132)
    file.seek(0)
    if not head:
        raise RefusedImage("truncated", "the file is empty")
    if head[128:] == b"DICM":  # PS3.10 7.1: 128 bytes of preamble, then the prefix
        return Decoded(*dicom.read(path))
    if not head.startswith((_PNG, _JPEG)):
        raise RefusedImage("not-an-image", "neither DICOM nor PNG nor JPEG")
    return Decoded(_picture(file), "")


def _picture(file: BinaryIO) -> NDArray[np.float32]:
    try:
        picture = Image.open(file, formats=("PNG", "JPEG"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RefusedImage("too-large", f"more than {MAX_PIXELS} pixels") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise RefusedImage("too-large", f"more than {MAX_PIXELS} pixels")
    if getattr(picture, "n_frames", 1) > 1:
        raise RefusedImage("multi-frame", "the file holds several pictures")
    picture.load()
    return grey(ImageOps.exif_transpose(picture))


def grey(picture: Image.Image) -> NDArray[np.float32]:
    """Turn a loaded picture of any mode into ``[H, W]`` in [0, 1].

    More than 8 bits are scaled from the smallest to the largest value present: 16-bit PNGs of
    radiographs hold 10 to 16 bits and do not say how many. Alpha is dropped.

    Raises:
        RefusedImage: if the channels differ by more than a JPEG's rounding.
    """
    if picture.mode in {"L", "1", "LA", "La"}:
        return np.asarray(picture.convert("LA").getchannel("L"), dtype=np.float32) / np.float32(255)
    if picture.mode.startswith(("I", "F")):
        return stretch(np.asarray(picture).astype(np.float32))
    if picture.mode not in {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA"}:
        raise RefusedImage("colour", "the colours are not red, green and blue")
    channels = np.asarray(picture.convert("RGBA"))[..., :3]
    if int((channels.max(axis=-1) - channels.min(axis=-1)).max()) > CHANNEL_TOLERANCE:
        raise RefusedImage("colour", "the channels differ")
    grey_values: NDArray[np.float32] = channels.mean(axis=-1, dtype=np.float32) / np.float32(255)
    return grey_values


def stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale linearly so that the smallest value is 0 and the largest 1; a flat image is 0."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
