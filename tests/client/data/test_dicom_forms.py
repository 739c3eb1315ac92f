"""One picture in every form a DICOM file gives it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

from client.data import dicom, dicom_header
from client.data.decoder_process import MAIN
from client.data.image import inspect
from client.data.workers import Workers
from tests.client.data.dicom_file import Draw, Make
from tests.client.data.transfer_syntaxes import COMPRESSED, LOSSY, NATIVE, compress, read


def lut(bits: int, words: str) -> Sequence:
    """Make a VOI LUT that changes nothing."""
    item = Dataset()
    item.LUTDescriptor = [2**bits % 2**16, 0, bits]
    item.LUTData = np.arange(2**bits, dtype=words).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return Sequence([item])


def forms(bits: int, words: str) -> Iterator[dict[str, Any]]:
    """Yield every way to say that the values are to be shown as they are."""
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        colour = {"PhotometricInterpretation": photometric, "BitsStored": bits, "HighBit": bits - 1}
        yield colour
        yield colour | {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
        yield colour | {
            "RescaleSlope": 2,
            "RescaleIntercept": -100,
            "WindowCenter": 2**bits - 100.5,
            "WindowWidth": 2 ** (bits + 1) - 1,
        }
        yield colour | {"VOILUTSequence": lut(bits, words)}


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_one_picture_in_every_form(make_dicom: Make, draw: Draw, bits: int, syntax: str) -> None:
    if bits > 8 and syntax in LOSSY:
        pytest.skip("GDCM writes no lossy JPEG of more than 8 bits that others read")
    top = 2**bits - 1
    picture = draw(64, 48, top=top)
    for form in forms(bits, ">u2" if syntax == "big-endian" else "<u2"):
        stored = top - picture if form["PhotometricInterpretation"] == "MONOCHROME1" else picture
        stored = stored.astype(np.uint8 if bits == 8 else np.uint16)
        if syntax == "big-endian":
            stored = stored.astype(stored.dtype.newbyteorder(">"))
            if bits == 8:  # 8-bit pixels in 16-bit words of this byte order
                form["PixelData"] = stored.view("<u2").byteswap().tobytes()
        path = make_dicom(stored, syntax=NATIVE.get(syntax, ExplicitVRLittleEndian), **form)
        facts, shown = inspect(compress(path, syntax) if syntax in COMPRESSED else path)
        assert facts.reason == ""
        np.testing.assert_allclose(shown, picture / top, atol=1 / 255 if syntax in LOSSY else 1e-5)


@pytest.mark.parametrize(
    "syntax",
    ["explicit", "implicit", "JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless"],
)
@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values(make_dicom: Make, draw: Draw, bits: int, syntax: str) -> None:
    picture = draw(64, 48, top=2**bits - 1)
    stored = (picture.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    window = {"WindowCenter": 0, "WindowWidth": 2**bits}
    path = make_dicom(
        stored, syntax=NATIVE.get(syntax, ExplicitVRLittleEndian), BitsStored=bits, HighBit=bits - 1, **window
    )
    _, shown = inspect(compress(path, syntax) if syntax in COMPRESSED else path)
    np.testing.assert_allclose(shown, picture / (2**bits - 1), atol=1e-5)


def test_jpeg_of_pillow(make_dicom: Make, draw: Draw, tmp_path: Path) -> None:
    picture = draw(64, 48).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=100)
    data = encapsulate([(tmp_path / "x.jpg").read_bytes()])
    path = make_dicom(picture, syntax=JPEGBaseline8Bit, PixelData=data)
    _, shown = inspect(path)
    np.testing.assert_allclose(shown, np.asarray(Image.open(tmp_path / "x.jpg")) / 255, atol=1 / 255)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, ExplicitVRLittleEndian])
def test_a_secondary_capture_of_highdicom(tmp_path: Path, draw: Draw, syntax: str) -> None:
    from highdicom.sc import SCImage

    picture = draw(64, 48, top=4095)
    image = SCImage(
        pixel_array=picture,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        coordinate_system="PATIENT",
        study_instance_uid=generate_uid(),
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="fedcxr",
        patient_id="7",
        patient_orientation=("L", "F"),
        transfer_syntax_uid=syntax,
    )
    image.save_as(tmp_path / "x.dcm")
    assert inspect(tmp_path / "x.dcm")[0].reason == "modality"
    image.Modality = "DX"
    image.save_as(tmp_path / "x.dcm")
    facts, shown = inspect(tmp_path / "x.dcm")
    assert (facts.reason, facts.patient, facts.study) == ("", "7", image.StudyInstanceUID)
    np.testing.assert_allclose(shown, picture / 4095, atol=1e-6)


@pytest.fixture(scope="module")
def without_libjpeg() -> Iterator[Workers]:
    """Workers on a machine that lacks what we may not require."""
    hide = """
import importlib.metadata, sys
sys.path = sys.argv[4:]
every = importlib.metadata.entry_points
keep = lambda found: importlib.metadata.EntryPoints(e for e in found if "libjpeg" not in e.value)
importlib.metadata.entry_points = lambda **wanted: keep(every(**wanted))
sys.modules["libjpeg"] = None
"""
    with Workers(1, main=hide + MAIN) as one:
        yield one


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_every_form_without_the_gpl_decoder(
    make_dicom: Make, draw: Draw, workers: Workers, without_libjpeg: Workers, syntax: str
) -> None:
    bits = 8 if syntax in LOSSY else 12
    stored = draw(64, 48, top=2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)
    path = compress(make_dicom(stored, BitsStored=bits, HighBit=bits - 1), syntax)
    (reason, with_it), (other, without) = read(workers, [path])[0], read(without_libjpeg, [path])[0]
    assert (reason, other) == ("", "")
    np.testing.assert_array_equal(with_it, without)


@pytest.mark.skipif(find_spec("libjpeg") is None, reason="pylibjpeg-libjpeg is not installed")
@pytest.mark.parametrize(
    "syntax", [name for name in COMPRESSED if name.startswith(("JPEGB", "JPEGE", "JPEGL"))]
)
def test_ours_decode_as_libjpeg_does(make_dicom: Make, draw: Draw, syntax: str) -> None:
    bits = 8 if syntax in LOSSY else 12
    stored = draw(64, 48, top=2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)
    path = compress(make_dicom(stored, BitsStored=bits, HighBit=bits - 1), syntax)
    theirs, _ = get_decoder(dcmread(path).file_meta.TransferSyntaxUID).as_array(
        dcmread(path), decoding_plugin="pylibjpeg"
    )
    ours = dicom.decode(dicom_header.parse(path.read_bytes()))
    np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=1 if syntax in LOSSY else 0)
