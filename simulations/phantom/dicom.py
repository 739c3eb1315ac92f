"""One radiograph as a DICOM object that states nothing but what the phantom knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

from simulations.phantom.scanner import Scanner

FIELD_MM = 340.0
"""Side of the field of view."""


@dataclass(frozen=True)
class Header:
    """What the object says about patient and study."""

    site: str
    seed: int
    patient: str
    study: str
    view: str
    age: int
    female: bool


def uid(*parts: object) -> UID:
    """Derive a UID from its parts, under the root for UUIDs (PS3.5 B.2).

    >>> uid("north", 1) == uid("north", 1) != uid("north", 2)
    True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def encode(pixels: NDArray[np.uint8] | NDArray[np.uint16], scanner: Scanner, header: Header) -> bytes:
    """Return the bytes of a file (PS3.10) for stored values ``[H, W]``; same input, same bytes."""
    film = scanner.modality == "CR"
    sop_class = ComputedRadiographyImageStorage if film else DigitalXRayImageStorageForPresentation
    instance = uid(header.site, header.seed, "instance", header.study)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid("fedcxr phantom")

    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, instance
    ds.Modality = scanner.modality
    ds.Manufacturer, ds.ManufacturerModelName = scanner.manufacturer, scanner.name
    ds.PatientName = header.patient.replace("-", "^", 1)
    ds.PatientID = header.patient
    ds.PatientBirthDate = ""
    ds.PatientSex = "F" if header.female else "M"
    ds.PatientAge = f"{header.age:03d}Y"
    ds.StudyInstanceUID = uid(header.site, header.seed, "study", header.study)
    ds.SeriesInstanceUID = uid(header.site, header.seed, "series", header.study)
    ds.StudyID = header.study
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", "", ""
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", header.view, ["L", "F"]
    if not film:
        _add_dx(ds, scanner)
    # Lettering of the workstation is burnt in at some sites; nothing about a patient ever is.
    ds.BurnedInAnnotation = "NO"
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "synthetic phantom, no patient"
    _add_pixels(ds, pixels, scanner)
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _add_dx(ds: Dataset, scanner: Scanner) -> None:
    """Attributes that the DX modules ask for (PS3.3 C.8.11)."""
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.ImageLaterality = "U"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if scanner.inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "INVERSE" if scanner.inverted else "IDENTITY"
    ds.LossyImageCompression = "00"
    ds.DetectorType = "SCINTILLATOR"


def _add_pixels(ds: Dataset, pixels: NDArray[np.uint8] | NDArray[np.uint16], scanner: Scanner) -> None:
    """The image pixel and VOI modules (PS3.3 C.7.6.3 and C.11.2)."""
    rows, columns = pixels.shape
    span = 2**scanner.bits
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated = 8 * pixels.itemsize
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = scanner.bits, scanner.bits - 1, 0
    spacing = f"{FIELD_MM / columns:.6g}"
    ds.PixelSpacing = ds.ImagerPixelSpacing = [spacing, spacing]
    # PS3.3 C.11.2.1.2.1: this centre and width map the whole range of stored values.
    ds.WindowCenter, ds.WindowWidth = str(span // 2), str(span)
    ds.PixelData = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
