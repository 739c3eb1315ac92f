"""One picture in every form a DICOM file gives it; pydicom's own files; files that mean harm."""

from __future__ import annotations

import logging
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, config, dcmread
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

from client.data import dicom, dicom_header
from client.data.decoder_process import MAIN
from client.data.image import inspect
from client.data.reasons import RefusedImage
from client.data.workers import Workers

Make = Callable[..., Path]
Draw = Callable[..., np.ndarray]

NATIVE = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
COMPRESSED = (
    "JPEGBaselineProcess1",
    "JPEGExtendedProcess2_4",
    "JPEGLosslessProcess14",
    "JPEGLosslessProcess14_1",
    "JPEGLSLossless",
    "JPEGLSNearLossless",
    "JPEG2000Lossless",
    "JPEG2000",
    "RLELossless",
)
LOSSY = ("JPEGBaselineProcess1", "JPEGExtendedProcess2_4")
"""Of 8 bits here: GDCM does not write 12 as the standard says."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2) as pair:
        yield pair


def read(workers: Workers, paths: list[Path]) -> list[tuple[str, np.ndarray | None]]:
    return [(facts.reason, pixels) for facts, pixels in workers.read(paths, 64, "pad", "refuse")]


def compress(path: Path, syntax: str) -> Path:
    """Write a file again in another transfer syntax, with GDCM, at its best quality."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    if syntax in LOSSY:
        codec = gdcm.JPEGCodec()
        codec.SetQuality(100)
        codec.SetLossless(False)
        change.SetUserCodec(codec)
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


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


def shipped() -> list[Path]:
    return [Path(name) for name in sorted(get_testdata_files())]


def expected_reason(path: Path) -> str:
    if path.is_dir():
        return "not-a-file"
    if path.read_bytes()[128:132] != b"DICM":
        return "not-an-image"
    if path.name == "rtplan_truncated.dcm":
        return "truncated"  # within its header
    with config.disable_value_validation():
        meta = dcmread(path, stop_before_pixels=True).file_meta
    return "" if meta.get("MediaStorageSOPClassUID") == ComputedRadiographyImageStorage else "modality"


@pytest.mark.filterwarnings("ignore")
def test_the_reasons_of_pydicoms_files(workers: Workers) -> None:
    paths = shipped()
    assert len(paths) > 150
    got = {path: reason for path, (reason, _) in zip(paths, read(workers, paths), strict=True)}
    assert got == {path: expected_reason(path) for path in paths}
    assert sum(not reason for reason in got.values()) == 3


def disguised(path: Path) -> Dataset | None:
    """Parse a file of another modality as if it were a radiograph; None if it cannot be one."""
    if path.is_dir() or path.read_bytes()[128:132] != b"DICM":
        return None
    dataset = dicom_header.parse(path.read_bytes())
    dataset.SOPClassUID, dataset.Modality = ComputedRadiographyImageStorage, "CR"
    return dataset


def reference(dataset: Dataset) -> np.ndarray:
    """Show a file with pydicom's functions, scaled as `dicom.present` says."""
    values = apply_modality_lut(dataset.pixel_array, dataset)
    if "WindowWidth" in dataset:
        shown = apply_voi_lut(values, dataset)
        low = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
        ends = np.array([low, low + 2**dataset.BitsStored - 1], dtype=float)
        low, high = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    else:
        shown, low, high = values, values.min(), values.max()
    shown = (shown - low) / (high - low)
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


GREY = [
    "693_J2KI.dcm",
    "CT_small.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "JPGExtended.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
    "examples_overlay.dcm",
    "image_dfl.dcm",
]
"""Of one frame of MONOCHROME1 or MONOCHROME2, and not radiographs."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GREY)
def test_the_pixels_of_pydicoms_grey_files(name: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    dataset = disguised(path)
    assert dataset is not None
    dataset.pop("PixelPaddingValue", None)  # pydicom's functions know no padding
    lossy = 1 / 255 if name == "JPGExtended.dcm" else 1e-5
    np.testing.assert_allclose(dicom.read(dataset), reference(dcmread(path)), atol=lossy)


@pytest.mark.filterwarnings("ignore")
def test_the_rest_of_pydicoms_files_is_refused_for_what_it_is() -> None:
    reasons: dict[str, set[str]] = {}
    for path in shipped():
        try:
            if path.name in GREY or (dataset := disguised(path)) is None:
                continue
            dicom.read(dataset)
        except RefusedImage as refused:
            reasons.setdefault(refused.reason, set()).add(path.name)
        except (ValueError, RuntimeError):
            reasons.setdefault("decode", set()).add(path.name)
    assert set(reasons) == {"colour", "decode", "dimensions", "multi-frame", "truncated"}
    assert {"MR_truncated.dcm", "rtplan_truncated.dcm"} <= reasons["truncated"]
    assert "rtdose.dcm" in reasons["multi-frame"]
    assert "SC_rgb_rle.dcm" in reasons["colour"]
    assert {"liver_1frame.dcm", "badVR.dcm"} <= reasons["decode"]
    # Its codestream claims 50,462,976 columns.
    assert reasons["dimensions"] == {"JPEG2000-embedded-sequence-delimiter.dcm"}


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
