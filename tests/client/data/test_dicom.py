"""DICOM to grey values in [0, 1]: parity with pydicom's own functions, and what is refused."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.data.dicom import window
from client.data.facts import BurnedIn, Facts
from client.data.image import inspect
from tests.client.data.dicom_file import Draw, Make, decode, insert, refusal

PATIENT = "MRN-77231"


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


def test_bits_above_those_stored_are_not_pixels(make_dicom: Make, draw: Draw) -> None:
    """Old overlays stand there, and padding, which is told before they are cleared."""
    stored = draw(top=4095)
    stored[3, 3] |= 0x5000
    stored[0, :4] = 63536
    shown = decode(make_dicom(stored, PixelPaddingValue=63536))
    expected = (stored & 0xFFF) / 4095
    expected[0, :4] = 0
    np.testing.assert_allclose(shown, expected, atol=1e-6)
