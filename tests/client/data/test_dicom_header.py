"""A header that lies or does not end: values of the wrong kind, sequences in sequences, sizes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from pydicom import DataElement, Dataset, config
from pydicom.sequence import Sequence
from pydicom.uid import (
    ImplicitVRLittleEndian,
)

from client.data.codestream import Frame, jpeg_2000_frame, jpeg_frame
from client.data.dicom import check_header
from client.data.dicom_header import MAX_DEPTH, parse
from client.data.image import inspect
from client.data.reasons import RefusedImage
from tests.client.data.dicom_file import Draw, Make, decode, insert, refusal


def element(keyword: str, vr: str, value: Any) -> Dataset:
    """A header that is fine but for one element, of a VR that it should not have."""
    header = Dataset()
    header.SOPClassUID, header.Modality, header.PixelData = "1.2.840.10008.5.1.4.1.1.1", "CR", b"00"
    header.Rows = header.Columns = 4
    header.PhotometricInterpretation, header.SamplesPerPixel = "MONOCHROME2", 1
    header.BitsAllocated = header.BitsStored = 8
    with config.disable_value_validation():
        header[keyword] = DataElement(keyword, vr, value)
    return header


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "reason"),
    [
        ("Rows", "US", [4, 4], "decode"),
        ("Rows", "LO", "four", "decode"),
        ("Columns", "DS", "4.5", "decode"),
        ("Rows", "SS", -4, "decode"),
        ("BitsAllocated", "LO", "8", "decode"),
        ("BitsAllocated", "US", 12, "decode"),
        ("BitsStored", "US", 9, "decode"),
        ("BitsStored", "US", 0, "decode"),
        ("HighBit", "US", 6, "decode"),
        ("NumberOfFrames", "LO", "many", "decode"),
        ("NumberOfFrames", "IS", "0", "multi-frame"),
        ("SamplesPerPixel", "SQ", [], "decode"),
        ("PhotometricInterpretation", "US", 2, "colour"),
        ("PhotometricInterpretation", "CS", ["MONOCHROME2", "RGB"], "colour"),
        ("Modality", "US", 7, "modality"),
        ("SOPClassUID", "OB", b"\0\xff", "modality"),
    ],
)
def test_values_of_the_wrong_kind(keyword: str, vr: str, value: Any, reason: str) -> None:
    with pytest.raises(RefusedImage) as caught:
        check_header(element(keyword, vr, value))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": "1e300", "RescaleIntercept": "1e300"},
        {"RescaleSlope": "nan", "RescaleIntercept": "0"},
        {"WindowCenter": "nan", "WindowWidth": "100"},
        {"WindowCenter": "12", "WindowWidth": "inf"},
        {"PixelPaddingValue": [1, 2]},
    ],
)
def test_numbers_that_lead_nowhere(make_dicom: Make, draw: Draw, elements: dict) -> None:
    with config.disable_value_validation():
        path = make_dicom(draw(), **elements)
    assert refusal(path) == "decode"


def nested(depth: int, tag: bytes, vr: bytes, *, defined: bool) -> bytes:
    """Sequences in sequences, in explicit VR (or implicit: no VR), of defined length or not."""
    long = vr + b"\0\0" if vr else b""
    if not defined:
        return (tag + long + b"\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    inner = b""
    for _ in range(depth):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
        inner = tag + long + struct.pack("<L", len(item)) + item
    return inner


PIXELS = b"\xe0\x7f\x10\x00"

VIEW_CODE, REQUEST, PRIVATE = b"\x54\x00\x20\x02", b"\x40\x00\x75\x02", b"\x09\x00\x01\x10"


def bombs(depth: int) -> dict[str, bytes]:
    return {
        f"{name} {'defined' if defined else 'undefined'}": nested(depth, tag, vr, defined=defined)
        for name, tag, vr in (
            ("public", REQUEST, b"SQ"),
            ("view", VIEW_CODE, b"SQ"),
            ("private", PRIVATE, b"SQ"),
            ("unknown", PRIVATE, b"UN"),
            ("view as unknown", VIEW_CODE, b"UN"),
            ("pixels", PIXELS, b"SQ"),
            ("pixels as unknown", PIXELS, b"UN"),
        )
        for defined in (True, False)
    } | {
        "unknown within": PRIVATE + b"UN\0\0\xff\xff\xff\xff" + nested(depth, REQUEST, b"", defined=False)[8:]
    }


@pytest.mark.parametrize("name", bombs(1))
def test_sequences_too_deep(make_dicom: Make, draw: Draw, name: str) -> None:
    assert refusal(insert(make_dicom(draw()), bombs(5000)[name])) == "too-deep"


@pytest.mark.parametrize("defined", [True, False])
def test_sequences_too_deep_in_implicit_and_big_endian(make_dicom: Make, draw: Draw, defined: bool) -> None:
    path = make_dicom(draw(), syntax=ImplicitVRLittleEndian)
    whole = path.read_bytes()
    start = whole.index(b"\x08\x00\x16\x00\x1a\0\0\0")
    path.write_bytes(whole[:start] + nested(5000, REQUEST, b"", defined=defined) + whole[start:])
    assert refusal(path) == "too-deep"


def test_sequences_too_deep_among_the_file_meta_elements(make_dicom: Make, draw: Draw) -> None:
    path = make_dicom(draw())
    whole = path.read_bytes()
    path.write_bytes(whole[:132] + nested(5000, b"\x02\x00\x02\x01", b"SQ", defined=False) + whole[132:])
    assert refusal(path) == "too-deep"


def test_sequences_as_deep_as_real_ones(make_dicom: Make, draw: Draw) -> None:
    innermost = Dataset()
    innermost.CodeValue = "1"
    for _ in range(MAX_DEPTH - 1):
        outer = Dataset()
        outer.RequestAttributesSequence = Sequence([innermost])
        outer["RequestAttributesSequence"].is_undefined_length = True
        innermost = outer
    path = make_dicom(draw(), RequestAttributesSequence=Sequence([innermost]), ViewPosition="AP")
    facts, pixels = inspect(path)
    assert (facts.reason, facts.view) == ("", "AP")
    assert pixels is not None


def test_more_elements_than_any_header(make_dicom: Make, draw: Draw) -> None:
    many = b"\x09\x00\x02\x10LO\0\0" * 120_000
    assert refusal(insert(make_dicom(draw()), many)) == "too-large"
    items = PRIVATE + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 120_000
    assert refusal(insert(make_dicom(draw()), items)) == "too-large"


def test_private_bytes_that_only_begin_like_a_sequence(make_dicom: Make, draw: Draw) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8).tobytes()
    value = b"\xfe\xff\x00\xe0" + noise
    extra = PRIVATE + b"UN\0\0" + struct.pack("<L", len(value)) + value
    assert decode(insert(make_dicom(draw()), extra)).shape == (24, 20)


def test_only_what_is_wanted_is_parsed(make_dicom: Make, draw: Draw) -> None:
    dataset = parse(make_dicom(draw(), RequestAttributesSequence=Sequence([Dataset()])).read_bytes())
    assert "PatientName" not in dataset
    assert "RequestAttributesSequence" not in dataset


def test_sizes_of_codestreams() -> None:
    jfif = b"\xff\xd8\xff\xe0\0\x04JF\xff\xff\xc4\0\x03\0"
    frame = b"\x00\x0b\x0c\x01\x02\x03\x04\x01\x00\x11\x00"
    for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7"):
        assert jpeg_frame(jfif + marker + frame) == Frame(258, 772, 1, 12)
    assert jpeg_frame(b"GIF89a") is None
    assert jpeg_frame(jfif) is None
    size = b"\xff\x4f\xff\x51" + struct.pack(">HH8LHBBB", 41, 0, 30, 20, 10, 5, 9, 9, 0, 0, 1, 0x8B, 1, 1)
    for prefix in (b"", b"\0\0\0\x0cjP  \r\n\x87\n"):
        assert jpeg_2000_frame(prefix + size) == Frame(15, 20, 1, 12)
    assert jpeg_2000_frame(size[:20]) is None
    assert jpeg_2000_frame(b"") is None
