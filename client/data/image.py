"""One image file to its facts and its grey values: PNG and JPEG here, DICOM in `client.data.dicom`.

Files are hostile until shown otherwise: `client.data.workers` calls this in a process it can lose.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from client.data import dicom, dicom_header
from client.data.facts import BurnedIn, Facts
from client.data.reasons import MAX_BYTES, MAX_PIXELS, Reason, RefusedImage

CHANNEL_TOLERANCE = 8
"""Largest difference of two channels, of 255, in a grey image that was stored as colour JPEG."""

_HASHED = 128
"""Short side of the picture that is hashed, about: the hash itself looks at 64 x 64."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


def inspect(path: Path, burned_in: BurnedIn = "refuse") -> tuple[Facts, NDArray[np.float32] | None]:
    """Read one image: what it says of itself, and ``[H, W]`` in [0, 1], bright where the film is bright.

    Never raises for a file, whatever is in it: the reason and what could be read are in the facts,
    and there are no pixels.
    """
    facts, picture = examine(path, burned_in)
    return facts, None if picture is None else levels(picture)


def examine(path: Path, burned_in: BurnedIn = "refuse") -> tuple[Facts, Image.Image | None]:
    """As `inspect`, with a picture of mode L, or F in [0, 1]: 8 bits stay 8 until they are scaled."""
    quieten()
    facts = Facts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values, and a value may be a name
        try:
            data = _bytes(path)
            facts = Facts(sha256=hashlib.sha256(data).hexdigest())
            if dicom_header.is_dicom(data):
                dataset = dicom_header.parse(data)
                facts = dicom_header.facts(dataset)._replace(sha256=facts.sha256)
                picture = Image.fromarray(dicom.read(dataset, burned_in))
            else:
                picture = _picture(data)
            return facts._replace(phash=perceptual_hash(picture)), picture
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  (a panic in Rust is no Exception)
            # Whatever a decoder raises is about this one image. Its text goes no further.
            return facts._replace(reason=_reason(error)), None


def quieten() -> None:
    """Silence what pydicom and Pillow log: it quotes headers. For every thread, and never restored."""
    for name in ("pydicom", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _reason(error: BaseException) -> Reason:
    if isinstance(error, RefusedImage):
        return error.reason
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RecursionError):
        return "too-deep"
    # Pillow says "image file is truncated (n bytes not processed)" and "broken data stream".
    return "truncated" if isinstance(error, OSError) and "truncated" in str(error) else "decode"


def _bytes(path: Path) -> bytes:
    """Read a whole file, once: it is hashed, and parsed from memory.

    Raises:
        RefusedImage: path, missing, not-a-file or too-large.
    """
    try:
        _check_status(path.stat())
        # Not to wait for a writer, should a pipe have taken the file's place.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise RefusedImage("path", "the path holds NUL") from None
    except OSError as error:
        raise RefusedImage("missing", f"the file cannot be opened ({type(error).__name__})") from None
    with open(handle, "rb") as file:  # noqa: PTH123  (a handle, not a path)
        status = _check_status(os.fstat(handle))
        try:
            return file.read(status.st_size)
        except OSError as error:
            raise RefusedImage("missing", f"the file cannot be read ({type(error).__name__})") from None


def _check_status(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedImage("not-a-file", "not a regular file")
    if status.st_size > MAX_BYTES:
        raise RefusedImage("too-large", f"more than {MAX_BYTES} bytes")
    return status


def _picture(data: bytes) -> Image.Image:
    if not data:
        raise RefusedImage("truncated", "the file is empty")
    if not data.startswith((_PNG, _JPEG)):
        raise RefusedImage("not-an-image", "neither DICOM nor PNG nor JPEG")
    try:
        picture = Image.open(BytesIO(data), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError:
        raise RefusedImage("too-large", f"more than {MAX_PIXELS} pixels") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise RefusedImage("too-large", f"more than {MAX_PIXELS} pixels")
    if getattr(picture, "n_frames", 1) > 1:
        raise RefusedImage("multi-frame", "the file holds several pictures")
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    return grey(picture)


def grey(picture: Image.Image) -> Image.Image:
    """Turn a loaded picture of any mode into one of mode L, or F in [0, 1].

    More than 8 bits are scaled from the smallest to the largest value present: 16-bit PNGs of
    radiographs hold 10 to 16 bits and do not say how many. Alpha is dropped.

    Raises:
        RefusedImage: if the channels differ by more than a JPEG's rounding.
    """
    if picture.mode == "L":
        return picture
    if picture.mode in {"1", "LA", "La"}:
        return picture.convert("LA").getchannel("L")
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(stretch(np.asarray(picture).astype(np.float32)))
    if picture.mode not in {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA"}:
        raise RefusedImage("colour", "the colours are not red, green and blue")
    red, green, blue = (picture if picture.mode == "RGB" else picture.convert("RGBA")).split()[:3]
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    smallest = ImageChops.darker(ImageChops.darker(red, green), blue)
    apart = ImageChops.difference(largest, smallest).histogram()
    if any(apart[CHANNEL_TOLERANCE + 1 :]):
        raise RefusedImage("colour", "the channels differ")
    if not any(apart[1:]):
        return red
    total = np.asarray(red, dtype=np.float32) + np.asarray(green) + np.asarray(blue)
    return Image.fromarray(total / np.float32(3 * 255))


def stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale linearly so that the smallest value is 0 and the largest 1; a flat image is 0."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros_like(values)
    scaled = values - low
    scaled /= high - low
    return scaled


def levels(picture: Image.Image) -> NDArray[np.float32]:
    """Return the values of a picture of mode L or F as ``[H, W]`` in [0, 1]."""
    values = np.asarray(picture, dtype=np.float32)
    return values / np.float32(255) if picture.mode == "L" else values


def perceptual_hash(picture: Image.Image) -> str:
    """Return 256 bits, in hex, that stay almost the same when a picture is scaled or saved again."""
    import imagehash  # with scipy.fftpack a third of a worker's start

    # Averaging first, for the hash's own resize costs as much as decoding on a full-size picture.
    small = picture.reduce(max(1, min(picture.size) // _HASHED))
    if small.mode == "F":
        small = Image.fromarray(np.rint(np.asarray(small) * 255).astype(np.uint8))
    return str(imagehash.phash(small, hash_size=16))
