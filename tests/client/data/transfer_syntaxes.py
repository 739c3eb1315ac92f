"""Every form in which a DICOM file gives a picture, and a file written again in another."""

from __future__ import annotations

from pathlib import Path

import gdcm
import numpy as np
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from client.data.workers import Workers

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
