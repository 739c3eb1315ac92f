"""A hospital's export and a folder of DICOM files, to be guessed at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.client.setup.person import ROWS


@pytest.fixture
def hospital(tmp_path):
    """A folder with pictures and a table as a hospital might export it; keyword arguments are columns."""

    def make(images="export/images", table="studies.csv", **columns):
        folder = tmp_path / "St. Mary's"
        (folder / images).mkdir(parents=True)
        paths = [f"{i:03d}.png" for i in range(ROWS)]
        for i, path in enumerate(paths):
            Image.fromarray(np.full((64, 64), i + 20, np.uint8)).save(folder / images / path)
        usual = {
            "Image": [f"{images.rpartition('/')[2]}/{path}" for path in paths],
            "Patient ID": [f"77231-{i // 2}" for i in range(ROWS)],
            "Patient Name": ["Doe^Jane"] * ROWS,
            "View Position": ["PA", "AP"] * (ROWS // 2),
            "Pleural Effusion": [1, 0] * (ROWS // 2),
        }
        frame = pd.DataFrame(usual | {name: cells * (ROWS // len(cells)) for name, cells in columns.items()})
        frame.to_csv(folder / table, index=False)
        return folder

    return make


@pytest.fixture
def dicom(tmp_path):
    """A folder of DICOM files without suffix, and perhaps a table of labels."""

    def make(**columns):
        folder = tmp_path / "pacs"
        for i in range(4):
            dataset = Dataset()
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
            dataset.SOPClassUID = ComputedRadiographyImageStorage
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.PatientID, dataset.AccessionNumber, dataset.StudyInstanceUID = (
                f"77231-{i}",
                f"A{i}",
                f"1.2.{i}",
            )
            dataset.Modality, dataset.ViewPosition = "CR", "PA"
            dataset.Rows = dataset.Columns = 64
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit, dataset.PixelRepresentation = 7, 0
            dataset.PixelData = np.random.default_rng(i).integers(0, 256, 64 * 64, dtype=np.uint8).tobytes()
            path = folder / f"S{i}" / f"IM{i:04d}"
            path.parent.mkdir(parents=True)
            dataset.save_as(path, enforce_file_format=True)
        if columns:
            pd.DataFrame(columns).to_csv(folder / "labels.csv", index=False)
        return folder

    return make
