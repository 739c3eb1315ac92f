"""Files that mean harm are refused soon, in little memory, and nothing of them is told."""

from __future__ import annotations

import logging
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from client.data.image import inspect
from client.data.workers import Workers
from tests.client.data.dicom_file import Draw, Make
from tests.client.data.transfer_syntaxes import COMPRESSED, NATIVE, compress, read


def deflate_bomb(make: Make, draw: Draw) -> Path:
    path = make(draw(), syntax=DeflatedExplicitVRLittleEndian)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start, zeros = b"\x09\x00\x02\x10OB\0\0\xf0\xff\xff\x7f", [bytes(2**20)] * 600
    data = b"".join(map(deflater.compress, [start, *zeros])) + deflater.flush()
    whole = path.read_bytes()
    end = 144 + struct.unpack_from("<L", whole, 140)[0]  # PS3.10 7.1: from after the group length
    path.write_bytes(whole[:end] + data)
    return path


def jpeg_2000_bomb(make: Make, draw: Draw, claimed: int) -> Path:
    """A header as large as is let through, around a codestream of next to nothing."""
    small = make(draw(64, 48, top=4095))
    dataset = dcmread(small)
    dataset.compress(JPEG2000Lossless)
    data = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    struct.pack_into(">2L", data, 8, claimed, claimed)
    struct.pack_into(">2L", data, 24, claimed, claimed)
    return make(
        draw(), syntax=JPEG2000Lossless, PixelData=encapsulate([bytes(data)]), Rows=6000, Columns=6000
    )


def rle_bomb(make: Make, draw: Draw) -> Path:
    segments = struct.pack("<16L", 2, 64, 66, *[0] * 13) + b"\x81\0" * 2
    return make(draw(), syntax=RLELossless, PixelData=encapsulate([segments]), Rows=6000, Columns=6000)


def jpeg_cut(make: Make, draw: Draw, syntax: str, *, share: float) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (200, 160)).astype(np.uint8)
    path = compress(make(noise, name=f"{syntax}.dcm"), syntax)
    dataset = dcmread(path)
    data = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([data[: int(len(data) * share)]])
    dataset.save_as(path)
    return path


def sequences(make: Make, draw: Draw, *, head: bytes) -> Path:
    path = make(draw())
    whole = path.read_bytes()
    start = whole.index(b"\x08\x00\x16\x00UI")
    item = head + b"\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(whole[:start] + item * 5000 + whole[start:])
    return path


HARM: dict[str, tuple[Callable[[Make, Draw], Path], set[str]]] = {
    "deflate": (deflate_bomb, {"too-large"}),
    "65535": (lambda make, draw: make(draw(), Rows=65535, Columns=65535), {"too-large"}),
    "rows": (lambda make, draw: make(draw(), Rows=6000, Columns=6000), {"truncated"}),
    "jpeg 2000": (
        lambda make, draw: jpeg_2000_bomb(make, draw, 6000),
        {""},
    ),  # decoders fill up what is missing
    "jpeg 2000, other": (lambda make, draw: jpeg_2000_bomb(make, draw, 2**31 - 1), {"dimensions"}),
    "rle": (rle_bomb, {"decode", "truncated"}),
    "public": (lambda make, draw: sequences(make, draw, head=b"\x40\x00\x75\x02SQ\0\0"), {"too-deep"}),
    "private": (lambda make, draw: sequences(make, draw, head=b"\x09\x00\x01\x10UN\0\0"), {"too-deep"}),
    "pixels": (lambda make, draw: sequences(make, draw, head=b"\xe0\x7f\x10\x00SQ\0\0"), {"too-deep"}),
    "views": (lambda make, draw: sequences(make, draw, head=b"\x54\x00\x20\x02SQ\0\0"), {"too-deep"}),
}


def peak(workers: Workers) -> int:
    """Return the most bytes a worker has held."""
    lines = [line for pid in workers.pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused_soon_and_in_little_memory(
    make_dicom: Make, draw: Draw, workers: Workers, name: str
) -> None:
    build, reasons = HARM[name]
    path = build(make_dicom, draw)
    list(workers.read([], 64, "pad", "refuse"))
    since = time.monotonic()
    ((reason, pixels),) = read(workers, [path])
    assert reason in reasons
    assert (pixels is None) == bool(reason)
    assert time.monotonic() - since < 5
    assert peak(workers) < 1_000_000_000


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_codestreams_cut_or_of_another_size(
    make_dicom: Make, draw: Draw, workers: Workers, syntax: str
) -> None:
    paths = []
    for share in (0.05, 0.1, 0.5, 0.9, 0.99):
        path = jpeg_cut(make_dicom, draw, syntax, share=share)
        paths.append(path.rename(path.with_suffix(f".{share}")))
    other = compress(make_dicom(draw(40, 30).astype(np.uint8)), syntax)
    dataset = dcmread(other)
    dataset.Rows, dataset.Columns = 30, 40
    dataset.save_as(other)
    *cut, (turned, _) = read(workers, [*paths, other])
    assert {reason for reason, _ in cut} <= {"decode", "truncated"}
    assert turned == "dimensions" or syntax == "RLELossless"


def test_noise_in_files_of_every_form(make_dicom: Make, draw: Draw, workers: Workers) -> None:
    """Whatever bytes are hit, there is a reason or a picture, and the workers live."""
    rng = np.random.default_rng(1)
    paths = []
    for syntax in (*NATIVE, *COMPRESSED):
        stored = draw(40, 30).astype(np.uint8)
        whole = make_dicom(stored, name="whole.dcm", syntax=NATIVE.get(syntax, ExplicitVRLittleEndian))
        data = (compress(whole, syntax) if syntax in COMPRESSED else whole).read_bytes()
        for number in range(12):
            harmed = np.frombuffer(data, dtype=np.uint8).copy()
            places = rng.integers(132 if number % 2 else len(data) * 2 // 3, len(data), 6)
            harmed[places] = rng.integers(0, 256, 6)
            paths.append(whole.with_name(f"{syntax}-{number}.dcm"))
            paths[-1].write_bytes(harmed.tobytes())
    reasons = {reason for reason, _ in read(workers, paths)}
    assert reasons >= {"", "decode"}
    assert "timeout" not in reasons


def test_nothing_of_a_file_is_told(
    make_dicom: Make,
    draw: Draw,
    workers: Workers,
    planted: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    paths = [build(make_dicom, draw) for name, (build, _) in HARM.items() if name != "deflate"]
    read(workers, paths)
    for path in paths:
        inspect(path)
    for text in (caplog.text, *capfd.readouterr()):
        assert not any(word in text for word in (*planted, paths[0].name))
