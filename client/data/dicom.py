"""One DICOM radiograph to grey values in [0, 1]. PS3.x are parts of the DICOM standard.

What can be refused is refused from the header and the codestream's own, before pixels cost memory.
Pixels stay as stored: Field of View Rotation and Horizontal Flip tell what the detector has done
already (PS3.3 C.8.11.4), Patient Orientation where the patient's sides are, not that any be swapped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from client.data.codestream import END, jpeg_2000_frame, jpeg_frame
from client.data.dicom_header import text, value
from client.data.facts import BurnedIn
from client.data.reasons import MAX_PIXELS, RefusedImage

MODALITIES = ("CR", "DX", "DR", "RG")
"""PS3.3 C.7.3.1.1.1: computed and digital radiography and film; DR is not in it and is in use."""

RADIOGRAPHS = (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation)
"""PS3.4 B.5. Not Digital X-Ray For Processing: raw detector values, not meant to be looked at."""

_LOSSY_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
_PLUGINS = {
    **dict.fromkeys(JPEGTransferSyntaxes, "gdcm"),
    **dict.fromkeys(_LOSSY_JPEG, "pillow"),  # the better tried of the two
    **dict.fromkeys(JPEGLSTransferSyntaxes, "gdcm"),
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg"),
    RLELossless: "pylibjpeg",
}
"""One decoder for each transfer syntax, so that a site's pixels do not depend on what else it has
installed: libjpeg of pylibjpeg-libjpeg is under the GPL and not ours to require."""


def read(dataset: Dataset, burned_in: BurnedIn = "refuse") -> NDArray[np.float32]:
    """Decode a parsed radiograph to ``[H, W]`` in [0, 1].

    Raises:
        RefusedImage: if the header is not that of one grey radiograph of a sane size, or the
            file ends before its pixels do.
    """
    check_header(dataset, burned_in)
    return present(dataset, decode(dataset))


def check_header(header: Dataset, burned_in: BurnedIn = "refuse") -> None:
    """Refuse what is not one grey radiograph of a sane size.

    Raises:
        RefusedImage: modality, burned-in, multi-frame, truncated, too-large, colour or decode.
    """
    # Some files are stripped of their own SOP Class UID and keep that of the file meta information.
    kind = text(header, "SOPClassUID") or text(
        getattr(header, "file_meta", Dataset()), "MediaStorageSOPClassUID"
    )
    modality = text(header, "Modality").upper()
    radiograph = kind in RADIOGRAPHS and modality in ("", *MODALITIES)
    # Public sets re-wrap radiographs as Secondary Capture and keep the modality.
    captured = kind == SecondaryCaptureImageStorage and modality in MODALITIES
    if not (radiograph or captured):
        raise RefusedImage("modality", "not a radiograph for presentation (CR, DX)")
    burned = text(header, "BurnedInAnnotation").upper()
    if (burned_in == "refuse" and burned == "YES") or (burned_in == "require-no" and burned != "NO"):
        raise RefusedImage("burned-in", "letters may be burnt into the pixels")
    if "PixelData" not in header:
        raise RefusedImage("truncated", "there is no pixel data")
    if integer(header, "NumberOfFrames", 1) != 1:
        raise RefusedImage("multi-frame", "more than one frame")
    rows, columns = integer(header, "Rows"), integer(header, "Columns")
    if rows * columns > MAX_PIXELS:
        raise RefusedImage("too-large", f"more than {MAX_PIXELS} pixels")
    grey = text(header, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    if not grey or integer(header, "SamplesPerPixel", 1) != 1:
        raise RefusedImage("colour", "not MONOCHROME1 or MONOCHROME2")
    allocated, stored = integer(header, "BitsAllocated"), integer(header, "BitsStored")
    if min(rows, columns) < 1 or allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise RefusedImage("decode", "pixels are neither 8 nor 16 bits wide, or there are none")
    if integer(header, "HighBit", stored - 1) != stored - 1:  # PS3.5 8.1.1
        raise RefusedImage("decode", "the high bit is not that of the bits stored")


def integer(header: Dataset, keyword: str, default: int = 0) -> int:
    """Return a whole number of the header, the default where it is absent or empty.

    Raises:
        RefusedImage: decode, if it is something else.
    """
    got = value(header, keyword)
    if got is None and (keyword not in header or not header.get_item(keyword).value):
        return default
    if not isinstance(got, int):
        raise RefusedImage("decode", "a number in the header is not one")
    return int(got)


def decode(dataset: Dataset) -> NDArray[np.generic]:
    """Return the stored values ``[H, W]`` of a checked header's image, as wide as allocated.

    Raises:
        RefusedImage: unsupported-syntax, truncated, dimensions or decode.
    """
    syntax = UID(text(dataset.file_meta, "TransferSyntaxUID"))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise RefusedImage("unsupported-syntax", "no decoder for this transfer syntax is installed")
    plugin = _PLUGINS.get(syntax, "")
    if syntax.is_compressed:
        bits = _check_codestream(dataset, syntax)
        # Encoders may count more bits than the header does; then they are used.
        dataset.BitsStored = max(dataset.BitsStored, bits)
        if syntax == JPEGExtended12Bit and bits > 8:
            # pydicom has GDCM refuse 12-bit JPEG, which GDCM decodes: it goes by the codestream.
            decoder, plugin = get_decoder(JPEGLosslessSV1), "gdcm"
    else:
        _check_length(dataset)
    # From the bytes, not the data set, whose transfer syntax need not be the decoder's.
    options: Any = {
        "rows": dataset.Rows,
        "columns": dataset.Columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": dataset.BitsAllocated,
        "bits_stored": dataset.BitsStored,
        "pixel_representation": dataset.PixelRepresentation,
        "pixel_keyword": "PixelData",
        "pixel_vr": dataset["PixelData"].VR,
        "correct_unused_bits": False,  # `present` does, after telling padding by the whole value
        **({} if syntax.is_compressed else {"view_only": True}),
    }
    pixels, _ = decoder.as_array(dataset.PixelData, index=0, raw=True, decoding_plugin=plugin, **options)
    return pixels


def _check_length(dataset: Dataset) -> None:
    """Hold uncompressed pixel data to rows x columns; some writers pad it by a few bytes."""
    expected = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if len(dataset.PixelData) < expected:
        raise RefusedImage("truncated", "the pixel data is shorter than rows x columns")
    if len(dataset.PixelData) > 1.02 * expected + 512:
        raise RefusedImage("dimensions", "the pixel data is longer than rows x columns")


def _check_codestream(dataset: Dataset, syntax: UID) -> int:
    """Return the bits of a compressed image, 0 if it does not tell.

    Raises:
        RefusedImage: truncated or dimensions.
    """
    data = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if not data:
        raise RefusedImage("truncated", "there is no pixel data")
    if syntax == RLELossless:
        return 0
    frame = jpeg_2000_frame(data) if syntax in JPEG2000TransferSyntaxes else jpeg_frame(data)
    if frame is None:
        raise RefusedImage("decode", "the pixel data does not begin as its transfer syntax does")
    if frame[:3] != (dataset.Rows, dataset.Columns, 1):
        raise RefusedImage("dimensions", "the pixels are not rows x columns of one sample")
    # Decoders fill up what is missing. Fragments are padded to an even length (PS3.5 A.4), with either.
    if not data.rstrip(b"\0\xff").endswith(END):
        raise RefusedImage("truncated", "the pixels end before their end marker")
    # GDCM writes, and reads again as something else, lossy JPEG of 16 bits, which there is not.
    if frame.bits > (12 if syntax in _LOSSY_JPEG else dataset.BitsAllocated):
        raise RefusedImage("decode", "the pixels have more bits than their place")
    return frame.bits


def present(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.float32]:
    """Turn stored values into display values: modality LUT, VOI, polarity, in this order (PS3.4 N.2).

    Padding is black and takes no part in the scaling. What a value is shown as depends on nothing
    but the value, so at most 65,536 are computed and then looked up, not one for each pixel.
    """
    stored = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))
    codes = stored.view(f"u{stored.itemsize}")
    values = np.arange(2 ** (8 * stored.itemsize), dtype=codes.dtype).view(stored.dtype)
    padding = padded(dataset, values)
    values = apply_modality_lut(_used_bits(values, dataset), dataset).astype(np.float32)  # PS3.3 C.11.1
    if not np.isfinite(values).all():
        raise RefusedImage("decode", "the rescale leads to no number")
    if dataset.get("VOILUTSequence"):
        shown = _voi_lut(values, dataset)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        shown = window(
            values,
            _first(dataset.WindowCenter),
            _first(dataset.WindowWidth),
            text(dataset, "VOILUTFunction").upper() or "LINEAR",
        )
    else:
        shown = _span(values, _occurring(codes) & ~padding)
    # PS3.3 C.7.6.3.1.2: MONOCHROME1 shows the smallest value white. Presentation LUT Shape INVERSE
    # says the same again (PS3.3 C.8.11.3.1.2) and must not invert a second time.
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        shown = 1 - shown
    shown[padding] = 0
    return _look_up(shown, codes)


def _occurring(codes: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.bool_]:
    """Tell for each code whether a pixel has it."""
    found = np.zeros(2 ** (8 * codes.itemsize), dtype=bool)
    for row in codes:  # an index is 8 bytes while it is used: by rows, that is nothing
        found[row] = True
    return found


def _look_up(table: NDArray[np.float32], codes: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.float32]:
    pixels = np.empty(codes.shape, dtype=np.float32)
    for row, out in zip(codes, pixels, strict=True):
        np.take(table, row, out=out, mode="clip")
    return pixels


def _used_bits(values: NDArray[np.generic], dataset: Dataset) -> NDArray[np.generic]:
    """Clear the bits above Bits Stored, which may hold an overlay or padding, or extend the sign."""
    unused = 8 * values.itemsize - dataset.BitsStored
    return np.right_shift(np.left_shift(values, unused), unused) if unused > 0 else values


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
    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
    if not 1 <= bits <= 16:
        raise RefusedImage("decode", "the VOI LUT has no width")
    # A LUT is indexed by integers (PS3.3 C.11.2.1.1); a rescale has made them floats.
    looked_up = apply_voi(np.rint(values).astype(np.int32), dataset)
    return np.asarray(np.clip(looked_up / np.float32(2**bits - 1), 0, 1), dtype=np.float32)


def _span(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale from the smallest to the largest value inside; a flat image is 0."""
    if not inside.any():
        return np.zeros_like(values)
    low, high = float(values[inside].min()), float(values[inside].max())
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _first(value: object) -> float:
    """Take the first of alternative windows (PS3.3 C.11.2.1.2: the choice is the application's)."""
    return float(value[0] if isinstance(value, MultiValue) else value)  # type: ignore[arg-type]
