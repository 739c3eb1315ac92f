"""One DICOM radiograph to grey values in [0, 1]. PS3.x are parts of the DICOM standard.

What can be refused is refused from the header, before pixels cost memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from client.data.reasons import MAX_PIXELS, RefusedImage

MODALITIES = ("CR", "DX", "DR", "RG")
"""PS3.3 C.7.3.1.1.1: computed and digital radiography and film; DR is not in it and is in use."""

RADIOGRAPHS = (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation)
"""PS3.4 B.5. Not Digital X-Ray For Processing: raw detector values, not meant to be looked at."""

_HEADER = [
    "SOPClassUID", "Modality", "ViewPosition", "ViewCodeSequence", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
]  # fmt: skip

_VIEW_CODES = {
    # PS3.16 CID 4010 DX View, as SNOMED CT and as the older SRT
    ("SCT", "399348003"): "AP", ("SRT", "R-10206"): "AP", ("SNM3", "R-10206"): "AP",
    ("SCT", "272479007"): "PA", ("SRT", "R-10214"): "PA", ("SNM3", "R-10214"): "PA",
}  # fmt: skip


def read(path: Path) -> tuple[NDArray[np.float32], str]:
    """Read one radiograph as ``[H, W]`` in [0, 1], with its view or ''.

    Raises:
        RefusedImage: if the header is not that of one grey radiograph of a sane size, or the
            file ends before its pixels do.
    """
    # pydicom's complaints about a malformed value quote it, and it may be a name. Nothing is
    # lost: what cannot be converted still raises. The same for every thread, so never restored.
    config.settings.reading_validation_mode = config.IGNORE
    meta, syntax = _transfer_syntax(path)
    header = dcmread(path, stop_before_pixels=True, specific_tags=_HEADER)
    check_header(header, str(meta.get("MediaStorageSOPClassUID", "")))
    dataset = dcmread(path)
    _check_pixel_data(dataset, syntax)
    return present(dataset, dataset.pixel_array), view(header)


def _transfer_syntax(path: Path) -> tuple[Dataset, UID]:
    try:
        meta = read_file_meta_info(path)
    except InvalidDicomError:
        raise RefusedImage("not-an-image", "no DICOM header") from None
    syntax = UID(str(meta.get("TransferSyntaxUID", "")))
    # PS3.5 A.5: deflated data sets must be inflated whole, to any size, before a tag can be read.
    if syntax == DeflatedExplicitVRLittleEndian:
        raise RefusedImage("unsupported-syntax", "deflated files are not read")
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise RefusedImage("unsupported-syntax", "no decoder for this transfer syntax is installed")
    return meta, syntax


def check_header(header: Dataset, stored_as: str = "") -> None:
    """Refuse what is not one grey radiograph of a sane size.

    Args:
        stored_as: Media Storage SOP Class UID, for files stripped of their own.

    Raises:
        RefusedImage: modality, colour, multi-frame, too-large or decode.
    """
    kind = str(header.get("SOPClassUID", "") or stored_as)
    modality = str(header.get("Modality", "") or "").upper()
    radiograph = kind in RADIOGRAPHS and modality in ("", *MODALITIES)
    # Public sets re-wrap radiographs as Secondary Capture and keep the modality.
    captured = kind == SecondaryCaptureImageStorage and modality in MODALITIES
    if not (radiograph or captured):
        raise RefusedImage("modality", "not a radiograph for presentation (CR, DX)")
    if int(header.get("NumberOfFrames", 1) or 1) != 1:
        raise RefusedImage("multi-frame", "more than one frame")
    if int(header.get("Rows", 0)) * int(header.get("Columns", 0)) > MAX_PIXELS:
        raise RefusedImage("too-large", f"more than {MAX_PIXELS} pixels")
    grey = header.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    if not grey or int(header.get("SamplesPerPixel", 1)) != 1:
        raise RefusedImage("colour", "not MONOCHROME1 or MONOCHROME2")
    if int(header.get("BitsAllocated", 0)) not in (8, 16):
        raise RefusedImage("decode", "pixels are neither 8 nor 16 bits wide")


def _check_pixel_data(dataset: Dataset, syntax: UID) -> None:
    if "PixelData" not in dataset:
        raise RefusedImage("truncated", "there is no pixel data")
    expected = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if not syntax.is_compressed and len(dataset.PixelData) < expected:
        raise RefusedImage("truncated", "the pixel data is shorter than rows x columns")


def view(header: Dataset) -> str:
    """Return View Position, or what View Code Sequence says in its place (PS3.3 C.8.11.5)."""
    position = str(header.get("ViewPosition", "") or "").strip().upper()
    if position:
        return position
    for item in header.get("ViewCodeSequence") or ():
        code = (str(item.get("CodingSchemeDesignator", "")), str(item.get("CodeValue", "")))
        if code in _VIEW_CODES:
            return _VIEW_CODES[code]
    return ""


def present(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.float32]:
    """Turn stored values into display values: modality LUT, VOI, polarity, in this order (PS3.4 N.2).

    Padding is black and takes no part in the scaling.
    """
    padding = padded(dataset, stored)
    values = apply_modality_lut(stored, dataset)  # PS3.3 C.11.1
    if dataset.get("VOILUTSequence"):
        shown = _voi_lut(values, dataset)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        shown = window(
            values.astype(np.float32),
            _first(dataset.WindowCenter),
            _first(dataset.WindowWidth),
            str(dataset.get("VOILUTFunction", "") or "LINEAR").upper(),
        )
    else:
        shown = _span(values.astype(np.float32), ~padding)
    # PS3.3 C.7.6.3.1.2: MONOCHROME1 shows the smallest value white. Presentation LUT Shape INVERSE
    # says the same again (PS3.3 C.8.11.3.1.2) and must not invert a second time.
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    shown[padding] = 0
    return shown


def padded(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Tell which stored values are padding: one value, or a range with its limit (PS3.3 C.7.5.1.1.2)."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    edges = [int(dataset.PixelPaddingValue)]
    if dataset.get("PixelPaddingRangeLimit") is not None:
        edges.append(int(dataset.PixelPaddingRangeLimit))
    # Written as US for signed pixels too: 63536 then means -2000.
    low, high = np.sort(np.array([edges[0], edges[-1]]).astype(stored.dtype))
    inside: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return inside


def window(
    values: NDArray[np.float32], centre: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float32]:
    """Apply a window, giving 0 to 1.

    Raises:
        RefusedImage: if the width or the function is not one the standard allows.
    """
    least = 1.0 if function == "LINEAR" else np.finfo(np.float32).tiny
    if not (np.isfinite(centre) and np.isfinite(width) and width >= least):
        raise RefusedImage("decode", "the window has no width")
    if function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        shown = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80)))
        return np.asarray(shown, dtype=np.float32)
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1: pixels have an extent, hence the halves
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":  # PS3.3 C.11.2.1.3.2
        raise RefusedImage("decode", "the VOI LUT function is not in the standard")
    if width == 0:
        return (values > centre).astype(np.float32)
    return np.asarray(np.clip((values - centre) / width + 0.5, 0, 1), dtype=np.float32)


def _voi_lut(values: NDArray[np.generic], dataset: Dataset) -> NDArray[np.float32]:
    # A LUT is indexed by integers (PS3.3 C.11.2.1.1); a rescale has made them floats.
    looked_up = apply_voi(np.rint(values).astype(np.int32), dataset)
    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
    return np.asarray(looked_up / np.float32(2**bits - 1), dtype=np.float32)


def _span(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale from the smallest to the largest value inside; a flat image is 0."""
    if not inside.any():
        return np.zeros_like(values)
    low, high = float(values[inside].min()), float(values[inside].max())
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _first(value: object) -> float:
    """Take the first of alternative windows (PS3.3 C.11.2.1.2: the choice is the application's)."""
    return float(value[0] if isinstance(value, MultiValue) else value)  # type: ignore[arg-type]
