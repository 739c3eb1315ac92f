"""NIH ChestX-ray14 (Wang et al. 2017, arXiv 1705.02315): Data_Entry_2017_v2020.csv and its images.

Labels were mined from reports, one list per image: what is not in it counts as absent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.data.columns import Text
from client.data.public.published import (
    ages,
    files_under,
    flags,
    held_out_validation,
    placed,
    read_table,
    sexes,
    table_of,
    text,
    views,
)
from common.errors import TableError

LABELS = {
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "effusion": "Effusion",
    "infiltration": "Infiltration",
    "mass": "Mass",
    "nodule": "Nodule",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
    "consolidation": "Consolidation",
    "edema": "Edema",
    "emphysema": "Emphysema",
    "fibrosis": "Fibrosis",
    "pleural_thickening": "Pleural_Thickening",
    "hernia": "Hernia",
}
"""Finding -> its word in ``Finding Labels``; ``No Finding`` is the absence of these 14."""

_NEEDED = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex",
    "View Position",
)  # fmt: skip

VALIDATION = 1 / 8
"""Share of the patients of train_val_list.txt held out: 70/10/20 over all, the usual division."""


def read(root: Path) -> dict[str, Text]:
    """Read the labels; where test_list.txt is there, its images are the test.

    The set publishes train and validation as one list: validation is drawn from its patients.

    Raises:
        TableError: if the table is missing or damaged.
    """
    path = table_of(root, "nih", "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    table = read_table(path, "nih", _NEEDED, renamed={"Patient Gender": "Patient Sex"})
    name, patient = table["Image Index"], table["Patient ID"]
    files = files_under(root, "images/*.png", "images_*/images/*.png", "images_*/*.png")
    stems = (image.removesuffix(".png") for image in name.tolist())
    columns = {
        "path": placed(stems, files, "images/{}.png"),
        "patient": patient,
        "study": np.char.add(np.char.add(patient, "/"), table["Follow-up #"]),
        "view": views(table["View Position"]),
        "age": ages(table["Patient Age"]),
        "sex": sexes(table["Patient Sex"]),
    } | _labels(table["Finding Labels"])
    if (listed := root / "test_list.txt").is_file():
        columns["split"] = held_out_validation(patient, np.isin(name, _names(listed)), VALIDATION)
    return columns


def _labels(cells: Text) -> dict[str, Text]:
    kinds, row_of = np.unique(cells, return_inverse=True)
    lists = [str(kind).split("|") for kind in kinds]
    return {
        finding: flags(np.array([word in words for words in lists], dtype=bool), kinds != "")[row_of]
        for finding, word in LABELS.items()
    }


def _names(path: Path) -> Text:
    try:
        return text(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(
            f"{path.name} of the nih layout cannot be read", found=type(error).__name__
        ) from None
