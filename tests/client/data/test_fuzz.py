"""Files changed at random, by the ten thousand: each is read or set aside, and nothing else happens.

Every mutation is drawn from its own seed, so that the number in a failure's text makes it again.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from client.data.facts import Facts
from client.data.reasons import CAUSES
from client.data.table import read_studies
from client.data.workers import shared_workers
from client.site import load_site
from common.errors import FedcxrError
from simulations.phantom import spoil_dicom, spoil_pictures
from simulations.phantom.spoiled import PLANTED, Study, draw_studies

BATCH = 1000
SIDE = 32
GIGABYTE = 2**30


class Seed(NamedTuple):
    """A sound file, where in it lengths and tags stand, and what makes a file of a changed body."""

    body: bytes
    fields: tuple[int, ...]
    seal: Callable[[bytes], bytes] = bytes
    words: tuple[bytes, ...] = ()
    """What a field of a text is exchanged for."""


Edit = Callable[[np.random.Generator, bytearray, Seed, bytes], bytearray]


def place(rng: np.random.Generator, data: bytearray) -> int:
    """Choose a position, half the time in the header, where a byte means more."""
    most = max(len(data), 1)
    return int(rng.integers(min(most, 1500) if rng.random() < 0.5 else most))


def flip(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    for _ in range(int(rng.integers(1, 5)) if data else 0):
        data[place(rng, data)] ^= 1 << int(rng.integers(8))
    return data


def cut(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    return data[: place(rng, data)]


def insert(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    at = place(rng, data)
    return data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]


def drop(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    at = place(rng, data)
    return data[:at] + data[at + int(rng.integers(1, 40)) :]


def repeat(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    at, length, times = place(rng, data), int(rng.integers(1, 300)), int(rng.integers(1, 20))
    return data[:at] + data[at : at + length] * times + data[at + length :]


def splice(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    return data[: place(rng, data)] + other[place(rng, bytearray(other)) :]


def stretch(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    """Write an extreme number over a length or a tag, or an odd word over a field of a text."""
    at = int(rng.choice(seed.fields))
    if seed.words:
        end = next((i for i in range(at, len(data)) if data[i] in b",\n"), at)
        return data[:at] + seed.words[int(rng.integers(len(seed.words)))] + data[end:]
    number = int(rng.choice([0, 1, 0x7FFF, 0xFFFE, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]))
    width = int(rng.choice([1, 2, 4]))
    data[at : at + width] = struct.pack("<Q" if rng.random() < 0.7 else ">Q", number)[:width]
    return data


def swap(rng: np.random.Generator, data: bytearray, seed: Seed, other: bytes) -> bytearray:
    """Copy eight bytes from one field, with its tag or its length, to another."""
    one, two = rng.choice(seed.fields, 2)
    data[one : one + 8] = data[two : two + 8]
    return data


EDITS: tuple[Edit, ...] = (
    flip, flip, flip, flip, stretch, stretch, stretch, swap, cut, insert, drop, repeat, splice,
)  # fmt: skip


def mutate(number: int, seeds: list[Seed]) -> bytes:
    rng = np.random.default_rng([77, number])
    seed, other = (seeds[int(i)] for i in rng.integers(len(seeds), size=2))
    data = bytearray(seed.body)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        data = EDITS[int(rng.integers(len(EDITS)))](rng, data, seed, other.body)
    # Most changes break a checksum or a compression, and nothing behind it is reached unless it is mended.
    return seed.seal(bytes(data)) if rng.random() < 0.8 else bytes(data)


def dicom_seeds() -> list[Seed]:
    """Every way of writing pixels that is decoded, and the elements that change what they show."""
    studies = draw_studies(7, seed=5, size=SIDE)
    built = [
        spoil_dicom.plain(studies[0]),
        spoil_dicom.save(with_tables(studies[1])),
        spoil_dicom.save(spoil_dicom.radiograph(studies[2], "inverted_dr"), ImplicitVRLittleEndian),
        spoil_dicom.compressed(studies[3], JPEG2000Lossless),
        spoil_dicom.compressed(studies[4], RLELossless),
        spoil_dicom.wrapped(studies[5], spoil_pictures.jpeg(studies[5].pixels), JPEGBaseline8Bit),
        spoil_dicom.save(jpeg_ls()),
    ]
    return [*(Seed(data, tags(data)) for data in built), deflated_seed(studies[6])]


def with_tables(study: Study) -> Dataset:
    """Make a radiograph with a VOI LUT, a rescale, padding and a coded view."""
    lut, code = Dataset(), Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 12], list(range(0, 4096, 16))
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    code.CodingSchemeDesignator, code.CodeValue = "SCT", "399348003"
    tables = {"ViewCodeSequence": Sequence([code]), "VOILUTSequence": Sequence([lut]), "ViewPosition": None}
    ds = spoil_dicom.radiograph(study, **tables, RescaleSlope=1, RescaleIntercept=0)
    ds.PixelPaddingValue, ds.PixelPaddingRangeLimit = 0, 2
    ds["PixelPaddingValue"].VR = ds["PixelPaddingRangeLimit"].VR = "US"
    return ds


def jpeg_ls() -> Dataset:
    """Pass pydicom's own JPEG-LS file off as a radiograph: there is no encoder here."""
    ds = dcmread(str(get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False)))
    ds.SOPClassUID, ds.Modality = DigitalXRayImageStorageForPresentation, "DX"
    return ds


def deflated_seed(study: Study) -> Seed:
    """Change what is deflated, not the deflated bytes, which no inflater would take."""
    whole = spoil_dicom.deflated(study)
    start = 132 + 12 + int.from_bytes(whole[140:144], "little")  # PS3.10 7.1: the group length
    body = zlib.decompress(whole[start:], -zlib.MAX_WBITS)

    def seal(changed: bytes) -> bytes:
        raw = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return whole[:start] + raw.compress(changed) + raw.flush()

    return Seed(body, tags(body), seal)


def tags(data: bytes) -> tuple[int, ...]:
    """Find where known elements keep their tag, their VR and their length."""
    wanted = ((2, 0x10), (8, 0x16), (8, 0x60), (0x28, 2), (0x28, 4), (0x28, 8), (0x28, 0x10), (0x28, 0x11),
              (0x28, 0x100), (0x28, 0x101), (0x28, 0x102), (0x28, 0x103), (0x28, 0x1050), (0x28, 0x1051),
              (0x28, 0x3002), (0x28, 0x3006), (0x28, 0x3010), (0x54, 0x220), (0x7FE0, 0x10),
              (0xFFFE, 0xE000))  # fmt: skip
    found = (data.find(struct.pack("<HH", *tag)) for tag in wanted)
    elements = [at + step for at in found if at >= 0 for step in (0, 4, 6, 8)]
    codestream = data.find(b"\xe0\x7f\x10\x00")
    return (*elements, *(at for at in markers(data) if at > codestream))


def picture_seeds() -> list[Seed]:
    studies = [study.pixels for study in draw_studies(5, seed=6, size=SIDE)]
    pngs = [
        spoil_pictures.png(studies[0]),
        spoil_pictures.png(studies[1].astype(np.uint16) * 200),
        picture(Image.fromarray(studies[2]).convert("P"), "PNG", interlace=1),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    jpegs = [
        spoil_pictures.jpeg(studies[3]),
        picture(Image.fromarray(studies[4]).convert("RGB"), "JPEG", progressive=True, exif=exif),
    ]
    return [*(Seed(data, chunks(data), checksums) for data in pngs), *(Seed(d, markers(d)) for d in jpegs)]


def picture(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunks(data: bytes) -> tuple[int, ...]:
    starts = [m.start() - 4 for m in re.finditer(rb"IHDR|IDAT|PLTE|tEXt|IEND", data)]
    return tuple(at + step for at in starts for step in (0, 4, 8, 12, 16, 17))


def checksums(data: bytes) -> bytes:
    """Write every chunk's checksum anew, as far as the chunks can be followed."""
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4])
        if end + 4 <= len(mended):
            mended[end : end + 4] = struct.pack(">I", zlib.crc32(mended[at + 4 : end]))
        at = end + 4
    return bytes(mended)


def markers(data: bytes) -> tuple[int, ...]:
    starts = [m.start() for m in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    return tuple(at + step for at in starts for step in (1, 2, 4, 5, 7))


def memory_of_workers() -> int:
    """Return the largest resident memory that a child of this process ever had, in bytes."""
    children = " ".join(task.read_text() for task in Path("/proc/self/task").glob("*/children")).split()
    peaks = [re.search(r"VmHWM:\s+(\d+)", status(child)) for child in children]
    return max((int(peak[1]) * 1024 for peak in peaks if peak), default=0)


def status(process: str) -> str:
    try:
        return Path("/proc", process, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def check(facts: Facts, pixels: np.ndarray | None) -> None:
    assert facts.reason == "" or facts.reason in CAUSES
    assert (pixels is None) == bool(facts.reason)
    assert pixels is None or (pixels.shape == (SIDE, SIDE) and pixels.dtype == np.uint8)
    assert all(len(fact) <= 64 and fact.isprintable() for fact in facts)


SOME, MANY = {"dicom": 400, "pictures": 300}, {"dicom": 40_000, "pictures": 30_000}


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *SOME.items(),
        *(pytest.param(*each, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for each in MANY.items()),
    ],
)
def test_images(tmp_path: Path, kind: str, count: int) -> None:
    seeds = {"dicom": dicom_seeds, "pictures": picture_seeds}[kind]()
    files = [tmp_path / str(i) for i in range(BATCH)]
    reasons: Counter[str] = Counter()
    for start in range(0, count, BATCH):
        batch = files[: count - start]
        for number, file in enumerate(batch, start):
            file.write_bytes(mutate(number, seeds))
        results = shared_workers().read(batch, SIDE, "crop", "refuse")
        for number, (facts, pixels) in enumerate(results, start):
            try:
                check(facts, pixels)
            except AssertionError as error:
                raise AssertionError(f"mutation {number} of {kind}: {facts.reason}") from error
            reasons[facts.reason] += 1
        assert 0 < memory_of_workers() < GIGABYTE
    assert reasons.total() == count
    assert not {"timeout", "memory"} & reasons.keys(), reasons
    # A decoder's crash costs its own file alone; it is still a rare thing.
    assert reasons["crashed"] <= count // 10_000, reasons
    # Neither so mild that all are read nor so rough that nothing behind the first check is reached.
    assert 0.05 * count < reasons[""] < 0.8 * count, reasons
    assert len(reasons) >= 4, reasons


def table_seeds() -> list[Seed]:
    rows = [f"{i}.png,{PLANTED}-{i},PA,{i % 2},{'' if i % 3 else -1},{30 + i},train" for i in range(9)]
    plain = "\n".join(["path,patient,view,edema,effusion,age,split", *rows]) + "\n"
    quoted = re.sub(r"[^,\n]+", r'"\g<0>"', plain).replace("\n", "\r\n")
    return [
        Seed(text.encode(), tuple(m.end() for m in re.finditer(",|\n(?=.)", text)), words=CELLS)
        for text in (plain, f"\ufeff{plain}", quoted)
    ]


CELLS = (
    b'"', b"-1", b"2", b"nan", b"inf", b"1e999", b"0x1", "\uff11".encode(), b"\0", b"\r", b"\xff", b"a;b",
    b"../x", b"/etc/passwd", b"C:x", b"9" * 5000, b"x" * 70_000, b"val", b" ", b"", b"=1+1",
)  # fmt: skip

SITE = """name = "north"

[data]
table = "studies.csv"
views = ["PA", "AP"]
max_quarantined = 0.2
split = [0.7, 0.1, 0.2]
split_seed = 0

[columns]
path = "path"
patient = "patient"

[filter]
view = ["PA", 1, 2.5]

[labels]
edema = "edema"
effusion = { column = "effusion", positive = ["yes", 1], negative = ["no", 0] }

[uncertainty]
edema = "ones"

[device]
name = "auto"
threads = 0
"""


VALUES = (
    b"nan", b"-inf", b"-1", b"1e999", b"9" * 5000, b"0x" + b"f" * 5000, b"[" * 5000, b"true", b"[]", b"{}",
    b'""', b'"any"', b'"\\u0000"', b'"\\U0010FFFF"', b'"../.."', b'"/"', b'"~"', b"2020-01-01",
    b"1" + b"_1" * 3000, b'"' + b"x" * 5000 + b'"', b"{a={a={a=1}}}", b'["a",["b"]]', b'"""',
)  # fmt: skip


def site_seeds() -> list[Seed]:
    return [Seed(SITE.encode(), tuple(m.end() for m in re.finditer("= ", SITE)), words=VALUES)]


@pytest.mark.parametrize(
    "count", [200, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_tables(tmp_path: Path, count: int) -> None:
    file = tmp_path / "site.toml"
    file.write_text('name = "n"\n[data]\ntable = "t.csv"\n[labels]\nedema = "edema"\neffusion = "effusion"\n'
                    '[uncertainty]\neffusion = "ignore"\n')  # fmt: skip
    site, seeds = load_site(file), table_seeds()
    codes: Counter[str] = Counter()
    for number in range(count):
        data = mutate(number, seeds)
        (tmp_path / "t.csv").write_bytes(data)
        code, told = outcome(number, lambda: read_studies(site, ["edema"]))
        codes[code] += 1
        if isinstance(told, str):
            # Columns are listed by name, and a header that has taken in a cell has its name.
            assert PLANTED not in told or "is not in t.csv" in told, number
        else:
            assert set(told.code.tolist()) <= {"", *CAUSES}, number
    assert codes["read"] > 0.1 * count and codes["E_TABLE"] > 0.1 * count, codes


def outcome(number: int, read: Callable[[], Any]) -> tuple[str, Any]:
    """Return "read" and what was, or an error's code and text; another exception fails the test."""
    try:
        return "read", read()
    except FedcxrError as error:
        return error.code, str(error)
    except Exception as error:
        error.add_note(f"mutation {number}")
        raise


@pytest.mark.parametrize(
    "count", [100, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_settings(tmp_path: Path, count: int) -> None:
    seeds = site_seeds()
    codes: Counter[str] = Counter()
    file = tmp_path / "site.toml"
    for number in range(count):
        file.write_bytes(mutate(number, seeds))
        codes[outcome(number, lambda: load_site(file))[0]] += 1
    assert set(codes) == {"read", "E_CONFIG"}, codes
