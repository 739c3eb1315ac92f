"""VinDr-CXR (Nguyen et al. 2022, arXiv 2012.15029), as PhysioNet or as Kaggle publishes it.

Every training image was read by three radiologists on their own: a finding is present where most
of them saw it. The test labels of PhysioNet are a consensus of five. All images are PA.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text
from client.data.public.published import (
    empty,
    files_under,
    flags,
    held_out_validation,
    no_patients,
    optional_table,
    placed,
    read_table,
    table_of,
)

LABELS: dict[str, tuple[str, ...]] = {
    "aortic_enlargement": ("Aortic enlargement",),
    "atelectasis": ("Atelectasis",),
    "calcification": ("Calcification",),
    "cardiomegaly": ("Cardiomegaly",),
    "consolidation": ("Consolidation",),
    "effusion": ("Pleural effusion",),
    "fibrosis": ("Pulmonary fibrosis",),
    "infiltration": ("Infiltration",),
    "interstitial_lung_disease": ("ILD",),
    "lung_opacity": ("Lung Opacity",),
    "nodule_or_mass": ("Nodule/Mass",),
    "pleural_thickening": ("Pleural thickening",),
    "pneumothorax": ("Pneumothorax",),
}
"""Finding -> classes both releases have. Other lesion depends on what else is in the list."""

LABELS_PHYSIONET = LABELS | {
    "chronic_obstructive_disease": ("COPD",),
    "clavicle_fracture": ("Clavicle fracture",),
    "edema": ("Edema",),
    "emphysema": ("Emphysema",),
    "enlarged_pulmonary_artery": ("Enlarged PA",),
    "fracture": ("Rib fracture", "Clavicle fracture"),
    "lung_cavity": ("Lung cavity",),
    "lung_cyst": ("Lung cyst",),
    "lung_tumor": ("Lung tumor",),
    "mediastinal_shift": ("Mediastinal shift",),
    "pneumonia": ("Pneumonia",),
    "tuberculosis": ("Tuberculosis",),
}
"""The classes Kaggle left out are rare, and only PhysioNet has the diagnoses."""

VALIDATION = 1 / 8
"""Share of the training images held out for validation, where there is a published test."""


def read(root: Path) -> dict[str, Text]:
    """Read PhysioNet's annotations/image_labels_*.csv, or else Kaggle's train.csv of boxes.

    Neither names patients.

    Raises:
        TableError: if no label table is there, or one is damaged.
    """
    no_patients("vindr")
    folder = root / "annotations" if (root / "annotations").is_dir() else root
    if train := optional_table(folder, "image_labels_train.csv"):
        parts = {"train": _read_answers(train)}
        if test := optional_table(folder, "image_labels_test.csv"):
            parts["test"] = _read_answers(test)
    else:
        parts = {
            "train": _read_boxes(table_of(root, "vindr", "train.csv", "annotations/image_labels_train.csv"))
        }
    image = np.concatenate([part["image"] for part in parts.values()])
    of_split = np.repeat(list(parts), [len(part["image"]) for part in parts.values()])
    files = files_under(root, *(f"{split}/*" for split in parts))
    columns = {
        "path": np.concatenate(
            [placed(part["image"].tolist(), files, f"{split}/{{}}.dicom") for split, part in parts.items()]
        ),
        "patient": image,
        "study": image,
        # "18,000 postero-anterior (PA) view CXR scans" (the PhysioNet page); other views were left out.
        "view": np.full(len(image), "PA"),
        "age": empty(len(image)),
        "sex": empty(len(image)),
    }
    for finding in [name for name in parts["train"] if name != "image"]:
        columns[finding] = np.concatenate([part[finding] for part in parts.values()])
    if "test" in parts:
        columns["split"] = held_out_validation(image, of_split == "test", VALIDATION)
    return columns


def _read_answers(path: Path) -> dict[str, Text]:
    """Read PhysioNet's table: a row per image and reader, a column of 1 and 0 per class."""
    classes = sorted({name for names in LABELS_PHYSIONET.values() for name in names})
    table = read_table(path, "vindr", ("image_id", *classes), ["rad_id"])
    images, image = np.unique(table["image_id"], return_inverse=True)
    reader = table.get("rad_id", empty(len(image)))
    seen = {name: np.isin(table[name], ("1", "1.0")) for name in classes}
    answers = {
        finding: np.logical_or.reduce([seen[name] for name in names])
        for finding, names in LABELS_PHYSIONET.items()
    }
    return {"image": images} | _majority(image, reader, answers)


def _read_boxes(path: Path) -> dict[str, Text]:
    """Read Kaggle's table: a row per box, or one row "No finding" for a reader who saw nothing."""
    table = read_table(path, "vindr", ("image_id", "class_name", "rad_id"))
    images, image = np.unique(table["image_id"], return_inverse=True)
    answers = {finding: np.isin(table["class_name"], names) for finding, names in LABELS.items()}
    return {"image": images} | _majority(image, table["rad_id"], answers)


def _majority(
    image: NDArray[np.int64], reader: Text, answers: dict[str, NDArray[np.bool_]]
) -> dict[str, Text]:
    readers = count_readers(image, reader, np.ones(len(image), dtype=bool))
    return {
        finding: flags(2 * count_readers(image, reader, seen) > readers) for finding, seen in answers.items()
    }


def count_readers(image: NDArray[np.int64], reader: Text, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count per image the different readers of these rows: ``[images]``."""
    _, number = np.unique(reader, return_inverse=True)
    pairs = np.unique(np.stack([image[rows], number[rows]]), axis=1)
    return np.bincount(pairs[0], minlength=int(image.max()) + 1)
