"""SIIM-ACR Pneumothorax Segmentation 2019: train-rle.csv and dicom-images-train/.

The images are from NIH ChestX-ray14; neither the table nor the files say whose.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.data.columns import Text
from client.data.public.published import (
    empty,
    files_under,
    flags,
    no_patients,
    placed,
    read_table,
    table_of,
)


def read(root: Path) -> dict[str, Text]:
    """Read one row per image: several masks of one image are several rows of the table.

    Age, sex and view stand in the DICOM files.

    Raises:
        TableError: if the table is missing or damaged.
    """
    table = read_table(table_of(root, "siim", "train-rle.csv"), "siim", ("ImageId", "EncodedPixels"))
    no_patients("siim")
    image, row_of = np.unique(table["ImageId"], return_inverse=True)
    masked = ~np.isin(table["EncodedPixels"], ("-1", ""))
    files = files_under(root, "dicom-images-train/*.dcm", "dicom-images-train/*/*/*.dcm")
    return {
        "path": placed(image.tolist(), files, "dicom-images-train/{}.dcm"),
        "patient": image,
        "study": image,
        "view": empty(len(image)),
        "age": empty(len(image)),
        "sex": empty(len(image)),
        "pneumothorax": flags(np.bincount(row_of, weights=masked) > 0),
    }
