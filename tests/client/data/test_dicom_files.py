"""pydicom's own files: each accepted or refused for what it is, and the pixels of the grey ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ComputedRadiographyImageStorage,
)

from client.data import dicom, dicom_header
from client.data.reasons import RefusedImage
from client.data.workers import Workers
from tests.client.data.transfer_syntaxes import read


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
