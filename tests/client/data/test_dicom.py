"""DICOM to grey values in [0, 1]: parity with pydicom's own functions, and what is refused."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydicom import DataElement, Dataset, config, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.data.codestream import Frame, jpeg_2000_frame, jpeg_frame
from client.data.dicom import check_header, window
from client.data.dicom_header import MAX_DEPTH, parse
from client.data.facts import BurnedIn, Facts
from client.data.image import inspect
from client.data.reasons import RefusedImage

PATIENT = "MRN-77231"
Make = Callable[..., Path]
Draw = Callable[..., np.ndarray]


def decode(path: Path) -> np.ndarray:
    facts, pixels = inspect(path)
    assert facts.reason == ""
    assert pixels is not None
    return pixels


def reference(path: Path) -> np.ndarray:
    """Window with pydicom and scale by its output range (PS3.3 C.11.2.1.2: bits stored, rescaled)."""
    dataset = dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
    ends = np.array([low, low + 2**dataset.BitsStored - 1], dtype=float)
    ends = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    return (shown - ends[0]) / (ends[1] - ends[0])


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2.5, "RescaleIntercept": -1024}])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_window_is_pydicoms(
    make_dicom: Make, draw: Draw, function: str | None, rescale: dict, kind: Any
) -> None:
    stored = draw(top=4095).astype(np.int32)
    stored = (stored - 2048 if kind is np.int16 else stored).astype(kind)
    voi = {"VOILUTFunction": function} if function else {}
    path = make_dicom(stored, WindowCenter=900, WindowWidth=1500, **rescale, **voi)
    np.testing.assert_allclose(decode(path), reference(path), atol=1e-5)


def test_monochrome1_is_inverted_exactly_once(make_dicom: Make, draw: Draw) -> None:
    stored = draw(top=4095)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    upright = decode(make_dicom(stored, **window))
    inverse = make_dicom(
        4095 - stored,
        "inverse.dcm",
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        **window,
    )
    np.testing.assert_allclose(decode(inverse), upright, atol=1e-3)
    assert upright[0, 0] == 1.0


def test_polarity_is_told_however_it_is_padded(make_dicom: Make, draw: Draw) -> None:
    path = make_dicom(draw(top=4095), PhotometricInterpretation="MONOCHROMEXX")
    upright = draw(top=4095) / 4095
    for spelt in (b"MONOCHROME1\0", b" MONOCHROME1", b"MONOCHROME1 "):
        path.write_bytes(path.read_bytes().replace(b"MONOCHROMEXX", spelt))
        np.testing.assert_allclose(decode(path), 1 - upright, atol=1e-6)
        path.write_bytes(path.read_bytes().replace(spelt, b"MONOCHROMEXX"))


def test_without_a_window_the_smallest_is_0_and_the_largest_1(make_dicom: Make, draw: Draw) -> None:
    stored = draw(top=3000) + 500
    np.testing.assert_allclose(decode(make_dicom(stored)), (stored - 500) / 3000, atol=1e-6)


def test_8_bits(make_dicom: Make, draw: Draw) -> None:
    stored = draw().astype(np.uint8)
    np.testing.assert_allclose(decode(make_dicom(stored)), stored / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_scale(make_dicom: Make, photometric: str) -> None:
    stored = np.tile(np.arange(1000, 1010, dtype=np.int16), (10, 1))
    stored[:, :2] = -2000
    path = make_dicom(
        stored, PhotometricInterpretation=photometric, BitsStored=16, HighBit=15, PixelPaddingValue=-2000
    )
    shown = decode(path)
    assert not shown[:, :2].any()
    ramp = np.linspace(0, 1, 8)
    np.testing.assert_allclose(shown[0, 2:], ramp if photometric == "MONOCHROME2" else 1 - ramp, atol=1e-6)


def test_a_range_of_padding(make_dicom: Make) -> None:
    stored = np.array([[0, 3, 5, 100, 200]], dtype=np.uint16)
    shown = decode(make_dicom(stored, PixelPaddingValue=0, PixelPaddingRangeLimit=5))
    np.testing.assert_array_equal(shown, [[0, 0, 0, 0, 1]])


def test_voi_lut_is_pydicoms(make_dicom: Make, draw: Draw) -> None:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 12]
    item.LUTData = (4095 * np.linspace(0, 1, 4096) ** 2).astype(int).tolist()
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    stored = draw(top=4095)
    path = make_dicom(stored, VOILUTSequence=Sequence([item]), RescaleSlope=1, RescaleIntercept=0)
    dataset = dcmread(path)
    np.testing.assert_allclose(decode(path), apply_voi_lut(dataset.pixel_array, dataset) / 4095, atol=1e-6)


def insert(path: Path, extra: bytes) -> Path:
    """Put elements at the start of the data set."""
    whole = path.read_bytes()
    start = whole.index(b"\x08\x00\x16\x00UI")
    path.write_bytes(whole[:start] + extra + whole[start:])
    return path


def code(scheme: str, value: str) -> Sequence:
    item = Dataset()
    item.CodingSchemeDesignator, item.CodeValue = scheme, value
    return Sequence([item])


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, ""),
        ({"ViewPosition": "PA "}, "PA"),
        ({"ViewPosition": "", "ViewCodeSequence": code("SCT", "399348003")}, "AP"),
        ({"ViewCodeSequence": code("SRT", "R-10214")}, "PA"),
        ({"ViewCodeSequence": code("SCT", "399173006")}, "LL"),
        ({"ViewCodeSequence": code("SRT", "R-10232")}, "RL"),
        ({"ViewCodeSequence": code("SCT", "399067008")}, "L"),
        ({"ViewCodeSequence": code("SCT", "399033003")}, ""),
        ({"ViewCodeSequence": code("LOCAL", "399173006")}, ""),
    ],
)
def test_view(make_dicom: Make, draw: Draw, elements: dict, expected: str) -> None:
    assert inspect(make_dicom(draw(), **elements))[0].view == expected


def test_a_malformed_value_is_not_quoted(
    make_dicom: Make, draw: Draw, planted: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = make_dicom(draw(), ViewPosition="XXXXXXXX", RescaleSlope="111", RescaleIntercept=0)
    path.write_bytes(path.read_bytes().replace(b"XXXXXXXX", planted[0].encode()).replace(b"111 ", b"1^x "))
    facts, pixels = inspect(path)
    assert (facts.view, facts.reason, pixels) == ("", "decode", None)
    assert not any(text in caplog.text for text in planted)


def refusal(path: Path) -> str:
    facts, pixels = inspect(path)
    assert pixels is None
    return facts.reason


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "CT"}, "modality"),
        ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, "modality"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"}, "modality"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "Modality": None}, "modality"),
        ({"NumberOfFrames": 2}, "multi-frame"),
        ({"Rows": 65535, "Columns": 65535}, "too-large"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"BitsAllocated": 32}, "decode"),
        ({"Rows": None}, "decode"),
        ({"Rows": 0}, "decode"),
        ({"Rows": 400}, "truncated"),
        ({"PixelData": None}, "truncated"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "decode"),
        ({"WindowCenter": 10, "WindowWidth": 10, "VOILUTFunction": "CUBIC"}, "decode"),
    ],
)
def test_refused(make_dicom: Make, draw: Draw, elements: dict, reason: str) -> None:
    facts, pixels = inspect(make_dicom(draw(top=4095), **elements))
    assert (facts.reason, pixels) == (reason, None)
    assert facts.patient == PATIENT  # whoever it is whose image was refused


@pytest.mark.parametrize(
    "elements", [{"Modality": None}, {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "DX"}]
)
def test_accepted(make_dicom: Make, draw: Draw, elements: dict) -> None:
    assert decode(make_dicom(draw(), **elements)).shape == (24, 20)


def test_an_unknown_transfer_syntax(make_dicom: Make, draw: Draw) -> None:
    path = make_dicom(draw())
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = generate_uid()
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    assert refusal(path) == "unsupported-syntax"


def test_a_file_cut_anywhere_is_refused(make_dicom: Make, draw: Draw) -> None:
    path = make_dicom(draw(top=4095))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 61):
        path.write_bytes(whole[:length])
        assert refusal(path)


def test_the_narrowest_window_is_a_threshold() -> None:
    values = np.array([0.0, 9.0, 10.0, 11.0], dtype=np.float32)
    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 8, 0
    dataset.WindowCenter, dataset.WindowWidth = 10, 1
    np.testing.assert_array_equal(window(values, 10, 1), apply_windowing(values, dataset) / 255)


def test_pixels_stay_as_stored(make_dicom: Make, draw: Draw) -> None:
    """The detector has turned and flipped already; where the patient's right is, is no order to swap."""
    stored = draw(top=4095)
    path = make_dicom(
        stored, PatientOrientation=["R", "H"], FieldOfViewRotation=90, FieldOfViewHorizontalFlip="YES"
    )
    np.testing.assert_allclose(decode(path), dcmread(path).pixel_array / 4095, atol=1e-6)
    np.testing.assert_allclose(decode(path), stored / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"PatientSex": "F", "PatientAge": "061Y"}, {"sex": "F", "age": "061Y"}),
        ({"PatientSex": "O", "PatientAge": "61"}, {"age": "061Y"}),
        ({"PatientAge": "6M"}, {"age": "006M"}),
        ({"PatientBirthDate": "19600229", "StudyDate": "20210228"}, {"age": "060Y"}),
        ({"PatientBirthDate": "19600229", "StudyDate": "2021.03.01"}, {"age": "061Y"}),
        ({"PatientBirthDate": "20600229", "StudyDate": "20210301"}, {}),
        ({"PatientBirthDate": "19609999", "StudyDate": "20210301"}, {}),
        ({"PatientAge": "old", "PatientBirthDate": "19600101", "StudyDate": "20200101"}, {"age": "060Y"}),
        ({"AccessionNumber": " A17 "}, {"accession": "A17"}),
        ({"Manufacturer": "Acme", "ManufacturerModelName": "X 1"}, {"scanner": "Acme X 1"}),
        ({"ManufacturerModelName": "X 1"}, {"scanner": "X 1"}),
        ({"StudyInstanceUID": "1.2.840.1"}, {"study": "1.2.840.1"}),
        ({"StudyInstanceUID": "1.2.Doe^Jane"}, {"study": ""}),
        ({"PatientID": "A\\B"}, {"patient": "A\\B"}),
        ({"PatientID": "x" * 99}, {"patient": "x" * 64}),
        ({"PatientID": "A\0B\x1b7\n"}, {"patient": "AB7"}),
        ({"PatientID": None}, {"patient": ""}),
        ({"ViewPosition": "pa"}, {"view": "PA"}),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_facts(make_dicom: Make, draw: Draw, syntax: str, given: dict, expected: dict) -> None:
    with config.disable_value_validation():
        path = make_dicom(draw(), syntax=syntax, **given)
    facts, _ = inspect(path)
    instance = dcmread(path).SOPInstanceUID
    wanted = Facts(patient=PATIENT, instance=instance, sha256=facts.sha256, phash=facts.phash)
    assert facts == wanted._replace(**expected)


@pytest.mark.parametrize(
    ("charset", "patient", "expected"),
    [
        ("ISO_IR 100", b"J\xf6rg1", "Jörg1"),
        ("ISO_IR 192", "李17".encode(), "李17"),
        ("ISO_IR 192", b"J\xf6rg1", None),
        ("Doe^Jane", b"Joerg1", "Joerg1"),
        ("ISO_IR 9\\ISO 2022 IR 7", b"Joerg1", "Joerg1"),
        ("ISO 2022 IR 87", b"\x1b$B1\x1b(B", None),
    ],
)
def test_a_bad_character_set_costs_nothing(
    make_dicom: Make, draw: Draw, charset: str, patient: bytes, expected: str | None
) -> None:
    path = make_dicom(draw(), PatientID="Y" * len(patient))
    path.write_bytes(path.read_bytes().replace(b"Y" * len(patient), patient))
    padded = charset.encode() + b" " * (len(charset) % 2)
    insert(path, b"\x08\x00\x05\x00CS" + struct.pack("<H", len(padded)) + padded)
    facts, pixels = inspect(path)
    assert facts.reason == ""
    assert pixels is not None
    assert facts.patient.isprintable()
    assert expected is None or facts.patient == expected


@pytest.mark.parametrize(
    ("burned", "reasons"),
    [
        ("YES", ("burned-in", "burned-in", "")),
        ("NO", ("", "", "")),
        (None, ("", "burned-in", "")),
        ("", ("", "burned-in", "")),
    ],
)
def test_burnt_in_letters(make_dicom: Make, draw: Draw, burned: str | None, reasons: tuple[str, ...]) -> None:
    path = make_dicom(draw(), **({} if burned is None else {"BurnedInAnnotation": burned}))
    assert tuple(inspect(path, choice)[0].reason for choice in get_args(BurnedIn)) == reasons


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


def test_bits_above_those_stored_are_not_pixels(make_dicom: Make, draw: Draw) -> None:
    """Old overlays stand there, and padding, which is told before they are cleared."""
    stored = draw(top=4095)
    stored[3, 3] |= 0x5000
    stored[0, :4] = 63536
    shown = decode(make_dicom(stored, PixelPaddingValue=63536))
    expected = (stored & 0xFFF) / 4095
    expected[0, :4] = 0
    np.testing.assert_allclose(shown, expected, atol=1e-6)


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
