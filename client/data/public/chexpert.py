"""CheXpert (Irvin et al. 2019, arXiv 1901.07031): train.csv, valid.csv, test.csv and their folders.

Labels were mined from reports: 1 present, 0 absent, -1 uncertain; a blank means that the report
does not mention the finding, which is not absence.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from client.data.columns import Text
from client.data.public.published import (
    ages,
    empty,
    held_out_validation,
    marks,
    optional_table,
    read_table,
    sexes,
    table_of,
    text,
    views,
)
from common.errors import TableError

LABELS = {
    "enlarged_cardiomediastinum": "Enlarged Cardiomediastinum",
    "cardiomegaly": "Cardiomegaly",
    "lung_opacity": "Lung Opacity",
    "lung_lesion": "Lung Lesion",
    "edema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "effusion": "Pleural Effusion",
    "pleural_other": "Pleural Other",
    "fracture": "Fracture",
    "support_device": "Support Devices",
}
"""Finding -> CheXpert's column, also in the label tables of MIMIC-CXR.

No Finding is left out: it means "none of the other 13 but a device", and blanks stay blank beside it.
"""

_TABLES = {"train": ("train.csv",), "validation": ("valid.csv",), "test": ("test.csv", "test_labels.csv")}
_RELEASE = re.compile(r"^CheXpert[^/]*/")
_DESCRIBED = ("Sex", "Age", "Frontal/Lateral", "AP/PA")

VALIDATION = 5_000 / 223_414
"""Share of training patients held out where valid.csv serves as the test (Zhou et al. 2023, MRM)."""


def read(root: Path) -> dict[str, Text]:
    """Read the labels of all splits that lie under the root, or in a CheXpert folder under it.

    Where all three tables are there they are the splits. Without the test set, which came years
    later, valid.csv (read by radiologists) is the test, as in most papers, and validation is drawn
    from the training patients. A lone train.csv has no split.

    Raises:
        TableError: if train.csv is missing, a table is damaged or a path in it is not CheXpert's.
    """
    folder = _folder(root)
    parts: dict[str, dict[str, Text]] = {}
    for split, names in _TABLES.items():
        path = table_of(folder, "chexpert", *names) if split == "train" else optional_table(folder, *names)
        if path:
            # The test labels are published without age, sex and view.
            parts[split] = _read_split(path, folder.relative_to(root), needed=split != "test")
    columns = {name: np.concatenate([part[name] for part in parts.values()]) for name in parts["train"]}
    of_split = np.repeat(list(parts), [len(part["path"]) for part in parts.values()])
    if len(parts) == len(_TABLES):
        columns["split"] = of_split
    elif len(parts) > 1:
        columns["split"] = held_out_validation(columns["patient"], of_split != "train", VALIDATION)
    return columns


def _folder(root: Path) -> Path:
    """Return the folder the tables lie in: the root, or the only CheXpert folder with tables in it."""
    if optional_table(root, *_TABLES["train"]) is None and root.is_dir():
        for below in sorted(root.glob("CheXpert*")):
            if optional_table(below, *_TABLES["train"]):
                return below
    return root


def _read_split(path: Path, below: Path, *, needed: bool) -> dict[str, Text]:
    must = ("Path", *(_DESCRIBED if needed else ()), *LABELS.values())
    table = read_table(path, "chexpert", must, _DESCRIBED)
    rows = len(table["Path"])
    prefix = "" if below == Path() else f"{below.as_posix()}/"
    side, direction, age, sex = (
        table.get(name, empty(rows)) for name in ("Frontal/Lateral", "AP/PA", "Age", "Sex")
    )
    # The first part is the release's name, which the folder need not bear any more.
    places = [_RELEASE.sub("", place).split("/") for place in table["Path"].tolist()]
    if not all(len(place) >= 3 and place[-3].startswith("patient") for place in places):
        raise TableError(
            f"{path.name}: column 'Path' is not RELEASE/SPLIT/patientN/studyN/VIEW throughout",
            fix="put the published table there, unchanged",
        )
    lateral = (side == "Lateral") | ((side == "") & (np.char.find(table["Path"], "_lateral") >= 0))
    return {
        "path": text(prefix + "/".join(place) for place in places),
        "patient": text(place[-3] for place in places),
        "study": text("/".join(place[-3:-1]) for place in places),
        "view": views(np.where(lateral, "L", direction)),
        # Patients are 18 to 90 years old; 0 stands for an age that is not known.
        "age": np.where(age == "0", "", ages(age)),
        "sex": sexes(sex),
    } | {finding: marks(table[column]) for finding, column in LABELS.items()}
