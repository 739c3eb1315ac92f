"""PNG and JPEG files as exports, web pages and attackers leave them, and what only claims to be one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from simulations.phantom.spoiled import PLANTED, Code, Spoiled, Study

Pixels = NDArray[np.uint8]
_NOTE = f"Thorax of {PLANTED}, born 1961. ".encode()


def pictures(studies: Iterator[Study]) -> Iterator[Spoiled]:
    """Yield the part of the catalogue that is, or says it is, PNG or JPEG; one study each."""
    for name, (code, build) in _FILES.items():
        study = next(studies)
        yield Spoiled(f"pictures/{name}", code, study, build(study.pixels))


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Return a PNG ``[H, W]`` or ``[H, W, 3]`` with a name in its text."""
    text = PngInfo()
    text.add_text("Comment", _NOTE.decode())
    return _written(Image.fromarray(pixels), "PNG", pnginfo=text)


def jpeg(pixels: Pixels, quality: int = 92) -> bytes:
    """Return a JPEG with a name in its comment."""
    return _written(Image.fromarray(pixels), "JPEG", quality=quality, comment=_NOTE)


def _written(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG (ISO/IEC 15948, 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def _huge(pixels: Pixels) -> bytes:
    return _header(60_000, 60_000) + _chunk(b"IDAT", zlib.compress(pixels.tobytes())) + _chunk(b"IEND", b"")


def _huge_jpeg(pixels: Pixels) -> bytes:
    """Declare 65,500 x 65,500 in the frame header (ISO/IEC 10918-1, B.2.2)."""
    whole = jpeg(pixels)
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", 65_500, 65_500) + whole[at + 4 :]


def _damaged(kind: bytes) -> Callable[[Pixels], bytes]:
    """Flip one bit of a chunk's content, so that its checksum is wrong."""

    def damage(pixels: Pixels) -> bytes:
        whole = bytearray(png(pixels))
        whole[whole.index(kind) + 7] ^= 1
        return bytes(whole)

    return damage


def _tinted(pixels: Pixels) -> Pixels:
    return np.stack([pixels, pixels // 2, 255 - pixels], axis=-1)


def _several(format: str) -> Callable[[Pixels], bytes]:
    """Write the picture and its negative into one file: APNG, or MPO (CIPA DC-007)."""

    def build(pixels: Pixels) -> bytes:
        more = [Image.fromarray(255 - pixels)]
        return _written(Image.fromarray(pixels), format, save_all=True, append_images=more)

    return build


def _turned(pixels: Pixels) -> bytes:
    """Lay the picture on its side and say so in its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, PLANTED  # Orientation: turn clockwise; Artist
    return _written(Image.fromarray(np.rot90(pixels)), "JPEG", quality=95, exif=exif)


def _just(content: bytes) -> Callable[[Pixels], bytes]:
    return lambda _: content


def _half(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


_ZIP = b"PK\x03\x04\x14\0\0\0\0\0" + bytes(20) + _NOTE * 10
_PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" + _NOTE * 10 + b"\n%%EOF\n"
_HTML = b"<!DOCTYPE html>\n<title>Session expired</title>\n<p>" + _NOTE * 10

_FILES: Mapping[str, tuple[Code, Callable[[Pixels], bytes]]] = {
    "plain.png": ("", png),
    "plain.jpg": ("", jpeg),
    "16-bit.png": ("", lambda pixels: png(pixels.astype(np.uint16) * 16)),
    "palette.png": ("", lambda pixels: _written(Image.fromarray(pixels).convert("P"), "PNG")),
    "grey-as-colour.jpg": ("", lambda pixels: jpeg(np.stack([pixels] * 3, axis=-1))),
    "turned-by-exif.jpg": ("", _turned),
    "dicom-by-name.dcm": ("", png),
    "text.dcm": ("not-an-image", _just(_NOTE * 10)),
    "archive.dcm": ("not-an-image", _just(_ZIP)),
    "letter.png": ("not-an-image", _just(_PDF)),
    "page.jpg": ("not-an-image", _just(_HTML)),
    "tiff.png": ("not-an-image", lambda pixels: _written(Image.fromarray(pixels), "TIFF")),
    "empty.png": ("truncated", _just(b"")),
    "empty.dcm": ("truncated", _just(b"")),
    "cut.png": ("truncated", lambda pixels: _half(png(pixels))),
    "cut.jpg": ("truncated", lambda pixels: _half(jpeg(pixels))),
    "cut-in-header.png": ("decode", lambda pixels: png(pixels)[:20]),
    "60000-rows.png": ("too-large", _huge),
    "65500-rows.jpg": ("too-large", _huge_jpeg),
    "damaged-header.png": ("decode", _damaged(b"IHDR")),
    "damaged-pixels.png": ("decode", _damaged(b"IDAT")),
    "colour.png": ("colour", lambda pixels: png(_tinted(pixels))),
    "colour.jpg": ("colour", lambda pixels: jpeg(_tinted(pixels))),
    "cmyk.jpg": ("colour", lambda pixels: _written(Image.fromarray(pixels).convert("CMYK"), "JPEG")),
    "animated.png": ("multi-frame", _several("PNG")),
    "several.jpg": ("multi-frame", _several("MPO")),
}
