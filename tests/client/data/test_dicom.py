"""DICOM to grey values in [0, 1]: parity with pydicom's own functions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.data.dicom import window
from client.data.image import decode, read_image
from client.data.reasons import RefusedImage

Make = Callable[..., Path]
Draw = Callable[..., np.ndarray]


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


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_other_transfer_syntaxes(make_dicom: Make, draw: Draw, syntax: str) -> None:
    stored = draw(top=4095)
    if syntax == RLELossless:
        path = make_dicom(stored)
        dataset = dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    else:
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        path = make_dicom(stored.astype(order), syntax=syntax)
    np.testing.assert_allclose(decode(path), stored / 4095, atol=1e-6)


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
        ({"ViewCodeSequence": code("SCT", "399173006")}, ""),
    ],
)
def test_view(make_dicom: Make, draw: Draw, elements: dict, expected: str) -> None:
    assert read_image(make_dicom(draw(), **elements)).view == expected


def test_a_malformed_value_is_not_quoted(
    make_dicom: Make, draw: Draw, planted: tuple[str, ...], recwarn: pytest.WarningsRecorder
) -> None:
    path = make_dicom(draw(), ViewPosition="XXXXXXXX")
    path.write_bytes(path.read_bytes().replace(b"XXXXXXXX", planted[0].encode()))
    assert read_image(path).view == planted[0].upper()
    assert not recwarn.list


def refusal(path: Path, planted: tuple[str, ...]) -> str:
    with pytest.raises(RefusedImage) as caught:
        decode(path)
    for text in (*planted, path.name):
        assert text not in str(caught.value)
    return caught.value.reason


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
        ({"Rows": 400}, "truncated"),
        ({"PixelData": None}, "truncated"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "decode"),
        ({"WindowCenter": 10, "WindowWidth": 10, "VOILUTFunction": "CUBIC"}, "decode"),
    ],
)
def test_refused(make_dicom: Make, draw: Draw, planted: tuple[str, ...], elements: dict, reason: str) -> None:
    assert refusal(make_dicom(draw(top=4095), **elements), planted) == reason


@pytest.mark.parametrize(
    "elements", [{"Modality": None}, {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "DX"}]
)
def test_accepted(make_dicom: Make, draw: Draw, elements: dict) -> None:
    assert decode(make_dicom(draw(), **elements)).shape == (24, 20)


def test_deflated_is_refused_before_it_is_inflated(
    make_dicom: Make, draw: Draw, planted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_dicom(draw(), syntax=DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("inflated"))
    assert refusal(path, planted) == "unsupported-syntax"


def test_an_unknown_transfer_syntax(make_dicom: Make, draw: Draw, planted: tuple[str, ...]) -> None:
    path = make_dicom(draw())
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = generate_uid()
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    assert refusal(path, planted) == "unsupported-syntax"


def test_a_file_cut_anywhere_is_refused(make_dicom: Make, draw: Draw, planted: tuple[str, ...]) -> None:
    path = make_dicom(draw(top=4095))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        refusal(path, planted)


def test_sequences_without_end_are_refused(make_dicom: Make, draw: Draw, planted: tuple[str, ...]) -> None:
    path = make_dicom(draw())
    whole = path.read_bytes()
    body = whole.index(b"\x08\x00\x16\x00UI")
    nest = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(whole[:body] + nest * 5000)
    assert refusal(path, planted) in {"decode", "modality"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CT_small.dcm", "modality"),
        ("SC_rgb_rle_2frame.dcm", "modality"),
        ("image_dfl.dcm", "unsupported-syntax"),
    ],
)
def test_pydicoms_own_files(name: str, reason: str) -> None:
    with pytest.raises(RefusedImage) as caught:
        decode(Path(str(get_testdata_file(name, download=False))))
    assert caught.value.reason == reason


def test_the_narrowest_window_is_a_threshold() -> None:
    values = np.array([0.0, 9.0, 10.0, 11.0], dtype=np.float32)
    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 8, 0
    dataset.WindowCenter, dataset.WindowWidth = 10, 1
    np.testing.assert_array_equal(window(values, 10, 1), apply_windowing(values, dataset) / 255)
