"""DICOM files as archives, converters and attackers leave them. PS3.x are parts of the standard."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    MPEG2MPML,
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
)

from simulations.phantom.dicom import Header, encode, uid
from simulations.phantom.scanner import SCANNERS
from simulations.phantom.spoil_pictures import jpeg
from simulations.phantom.spoiled import PLANTED, Code, Spoiled, Study

BOMB_BYTES = 2**31
"""What the deflated bomb inflates to."""
DEPTH = 5000
"""Sequences in each other; real headers have fewer than ten."""

Build = Callable[[Study], bytes]


def dicom_files(studies: Iterator[Study]) -> Iterator[Spoiled]:
    """Yield the DICOM part of the catalogue, one study each.

    Where the table leaves the view open, the file's own header decides.
    """
    for name, (code, build) in _FILES.items():
        study = next(studies)
        yield Spoiled(f"dicom/{name}.dcm", code, study, build(study), {"view": ""})


def radiograph(study: Study, scanner: str = "reference", /, **elements: object) -> Dataset:
    """Make a radiograph with names wherever a header has room; ``elements`` set or (None) remove."""
    machine, cells = SCANNERS[scanner], study.cells
    top = 2**machine.bits - 1
    stored = np.round(study.pixels * (top / 255)).astype(np.uint8 if machine.bits <= 8 else np.uint16)
    header = Header(
        site="spoiled",
        seed=0,
        patient=cells["patient"],
        study=cells["study"],
        view=cells["view"],
        age=int(cells["age"]),
        female=cells["sex"] == "F",
    )
    ds = dcmread(BytesIO(encode(top - stored if machine.inverted else stored, machine, header)))
    ds.ReferringPhysicianName = ds.OperatorsName = f"{PLANTED}^Doctor"
    ds.StudyDescription = f"Thorax {PLANTED}"
    ds.add_new(0x00190010, "LO", PLANTED)
    for key, value in elements.items():
        if value is None:
            delattr(ds, key)
        else:
            setattr(ds, key, value)
    return ds


def save(ds: Dataset, syntax: str | None = None) -> bytes:
    """Return the bytes of a file (PS3.10), in another transfer syntax if one is named."""
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    buffer = BytesIO()
    # A syntax pydicom does not know is written as explicit little endian, as PS3.5 A.4 asks.
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dcmwrite(buffer, ds, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return buffer.getvalue()


def plain(study: Study) -> bytes:
    """Return a sound file."""
    return save(radiograph(study))


def compressed(study: Study, syntax: str, step: int = 1) -> bytes:
    """Compress every ``step``-th pixel and say that it is all of them."""
    ds = radiograph(Study(np.ascontiguousarray(study.pixels[::step, ::step]), study.cells))
    ds.compress(UID(syntax), generate_instance_uid=False)
    ds.Rows, ds.Columns = study.pixels.shape
    return save(ds)


def wrapped(study: Study, stream: bytes, syntax: str) -> bytes:
    """Return a file whose pixel data is this stream, as one fragment (PS3.5 A.4)."""
    ds = radiograph(study, LossyImageCompression="01", PixelData=encapsulate([stream]))
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return save(ds, syntax)


def deflated(study: Study, zeros: int = 0) -> bytes:
    """Write a deflated file (PS3.5 A.5), with pixel data of so many zeros in place of its own.

    A run of zeros is compressed once and repeated, each time with an empty history, so that what
    inflates to gigabytes never was gigabytes.
    """
    ds = radiograph(study)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    if zeros:
        del ds.PixelData
    meta, body = DicomBytesIO(), DicomBytesIO()
    meta.is_little_endian = body.is_little_endian = True
    meta.is_implicit_VR = body.is_implicit_VR = False
    write_file_meta_info(meta, ds.file_meta)
    write_dataset(body, ds)
    raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [b"\0" * 128 + b"DICM", meta.getvalue(), raw.compress(body.getvalue())]
    if zeros:
        parts += [raw.compress(_element(0x7FE0, 0x0010, b"OB", zeros)), raw.flush(zlib.Z_FULL_FLUSH)]
        run = raw.compress(bytes(2**24)) + raw.flush(zlib.Z_FULL_FLUSH)
        parts.append(run * (zeros // 2**24))
    return b"".join([*parts, raw.flush()])


def nested(study: Study) -> bytes:
    """Put `DEPTH` sequences into each other, all of them closed again (PS3.5 7.5)."""
    opened = _element(0x0008, 0x1115, b"SQ", 0xFFFFFFFF) + _item(0xE000, 0xFFFFFFFF)
    closed = _item(0xE00D, 0) + _item(0xE0DD, 0)
    patient = b"\x10\x00\x10\x00PN"
    return plain(study).replace(patient, opened * DEPTH + closed * DEPTH + patient, 1)


def _element(group: int, element: int, vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", group, element, vr, 0, length)


def _item(element: int, length: int) -> bytes:
    return struct.pack("<HHI", 0xFFFE, element, length)


def _with(scanner: str = "reference", /, syntax: str | None = None, **elements: object) -> Build:
    return lambda study: save(radiograph(study, scanner, **elements), syntax)


def _cut(build: Build, share: float) -> Build:
    return lambda study: (whole := build(study))[: int(share * len(whole))]


def _replaced(build: Build, old: bytes, new: bytes) -> Build:
    """Overwrite what follows the first of some bytes, which must be there."""

    def replaced(study: Study) -> bytes:
        whole = build(study)
        at = whole.index(old) + len(old)
        return whole[:at] + new + whole[at + len(new) :]

    return replaced


def _jpeg(study: Study) -> bytes:
    return wrapped(study, jpeg(study.pixels), JPEGBaseline8Bit)


def _half_a_jpeg(study: Study) -> bytes:
    """A sound file around a codestream that was cut before it was wrapped."""
    stream = jpeg(study.pixels)
    return wrapped(study, stream[: len(stream) // 2], JPEGBaseline8Bit)


def _mpeg2(study: Study) -> bytes:
    return wrapped(study, b"\0\0\x01\xb3" + study.pixels.tobytes(), MPEG2MPML)


def _j2k(study: Study) -> bytes:
    return compressed(study, JPEG2000Lossless)


def _big_endian(study: Study) -> bytes:
    ds = radiograph(study, "flat_panel")
    ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    return save(ds, ExplicitVRBigEndian)


def _frames(study: Study) -> bytes:
    return save(radiograph(study, NumberOfFrames=2, PixelData=study.pixels.tobytes() * 2))


def _rgb(study: Study) -> bytes:
    colours = np.stack([study.pixels, study.pixels // 2, study.pixels // 3], axis=-1).tobytes()
    kind = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    return save(radiograph(study, PixelData=colours, **kind))


def _report(study: Study) -> bytes:
    none = dict.fromkeys(("PixelData", "Rows", "Columns", "ViewPosition"))
    return save(radiograph(study, SOPClassUID=BasicTextSRStorage, Modality="SR", **none))


def _more_columns(study: Study) -> bytes:
    return save(radiograph(study, Columns=study.pixels.shape[1] * 4))


def _half_the_columns(study: Study) -> bytes:
    return save(radiograph(study, Columns=study.pixels.shape[1] // 2))


def _odd_header(study: Study) -> bytes:
    """Values that the standard forbids, in elements no picture needs."""
    whole = save(radiograph(study, PatientAge="061Y", PatientSex="F", StudyDate="20010101"))
    for value in (b"061Y", b"20010101"):
        whole = whole.replace(value, f"{PLANTED}ABC"[: len(value)].encode())
    return whole


_CENTRE = b"\x28\x00\x50\x10DS\x04\x00"
_ROWS = b"\x28\x00\x10\x00"

_FILES: Mapping[str, tuple[Code, Build]] = {
    "plain": ("", plain),
    "12-bit": ("", _with("flat_panel")),
    "16-bit-monochrome1": ("", _with("inverted_dr")),
    "implicit-vr": ("", _with(syntax=ImplicitVRLittleEndian)),
    "big-endian": ("", _big_endian),
    "rle": ("", lambda study: compressed(study, RLELossless)),
    "jpeg": ("", _jpeg),
    "jpeg2000": ("", _j2k),
    "deflated": ("", deflated),
    "odd-header-values": ("", _odd_header),
    "cut-in-file-meta": ("truncated", lambda study: plain(study)[:150]),
    "cut-in-header": ("truncated", lambda study: plain(study)[:700]),
    "cut-in-pixels": ("truncated", _cut(plain, 0.7)),
    "cut-in-jpeg": ("truncated", _cut(_jpeg, 0.7)),
    "cut-in-jpeg2000": ("truncated", _cut(_j2k, 0.7)),
    "no-pixels": ("truncated", _with(PixelData=None)),
    "65535-rows": ("too-large", _with(Rows=65535, Columns=65535)),
    "deflate-bomb": ("too-large", lambda study: deflated(study, zeros=BOMB_BYTES)),
    "nested-sequences": ("too-deep", nested),
    "more-columns": ("truncated", _more_columns),
    "half-the-columns": ("dimensions", _half_the_columns),
    "jpeg2000-of-another-size": ("dimensions", lambda study: compressed(study, JPEG2000Lossless, step=2)),
    "rle-of-another-size": ("decode", lambda study: compressed(study, RLELossless, step=2)),
    "corrupt-jpeg": ("decode", _replaced(_jpeg, b"\xff\xc4", b"\xaa" * 64)),
    "corrupt-jpeg2000": ("decode", _replaced(_j2k, b"\xff\x52\x00\x0c", b"\xaa" * 64)),
    "half-a-jpeg": ("truncated", _half_a_jpeg),
    "window-in-words": ("decode", _replaced(plain, _CENTRE, b"wide")),
    "rows-in-words": ("decode", _replaced(plain, _ROWS, b"SH\x02\x00no")),
    "mpeg2": ("unsupported-syntax", _mpeg2),
    "made-up-syntax": ("unsupported-syntax", _with(syntax=uid("a made-up transfer syntax"))),
    "ct": ("modality", _with(SOPClassUID=CTImageStorage, Modality="CT")),
    "mr": ("modality", _with(SOPClassUID=MRImageStorage, Modality="MR")),
    "report": ("modality", _report),
    "for-processing": ("modality", _with(SOPClassUID=DigitalXRayImageStorageForProcessing)),
    "modality-is-a-name": ("modality", _with(Modality=PLANTED.upper())),
    "rgb": ("colour", _rgb),
    "palette": ("colour", _with(PhotometricInterpretation="PALETTE COLOR")),
    "two-frames": ("multi-frame", _frames),
    "burned-in": ("burned-in", _with(BurnedInAnnotation="YES")),
    "burned-in-unsaid": ("burned-in", _with(BurnedInAnnotation=None)),
    "lateral": ("view", _with(ViewPosition="LL")),
    "view-is-a-name": ("view", _with(ViewPosition=PLANTED.upper())),
    "no-view": ("unknown-view", _with(ViewPosition=None)),
}
