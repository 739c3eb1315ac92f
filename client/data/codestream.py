"""What a compressed picture says of its own size, which the DICOM header around it may not share."""

from __future__ import annotations

import struct
from typing import NamedTuple

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_SIZ = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and its first segment (ISO 15444-1 A.4, A.5.1)."""
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Start of frame, lossy and lossless (ISO 10918-1 B.1.1.3), and JPEG-LS (ISO 14495-1 C.1.1)."""
END = b"\xff\xd9"
"""End of image, and of codestream."""
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment."""


class Frame(NamedTuple):
    """Size of a compressed picture."""

    rows: int
    columns: int
    channels: int
    bits: int


def jpeg_frame(data: bytes) -> Frame | None:
    """Return the first frame header of a JPEG or JPEG-LS codestream; None if there is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            bits, rows, columns, channels = struct.unpack_from(">BHHB", data, at + 4)
            return Frame(rows, columns, channels, bits)
        if marker == 0xFF:  # padding (ISO 10918-1 B.1.1.2)
            at += 1
        else:
            at += 2 if marker in _ALONE else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def jpeg_2000_frame(data: bytes) -> Frame | None:
    """Return the size of a JPEG 2000 codestream, also in a JP2 file; None if there is none."""
    at = data.find(_SIZ, 0, 4096) if data.startswith(_JP2_SIGNATURE) else 0
    if data[at : at + 4] != _SIZ or len(data) < at + 43:
        return None
    right, bottom, left, top = struct.unpack_from(">4L", data, at + 8)
    channels, bits = struct.unpack_from(">HB", data, at + 40)
    return Frame(bottom - top, right - left, channels, (bits & 0x7F) + 1)
