"""RSNA Pneumonia Detection Challenge 2018 (Shih et al. 2019, doi 10.1148/ryai.2019180041), stage 2.

The images are from NIH ChestX-ray14, read anew by radiologists. ``patientId`` is an image's number:
whose image it is tells only the mapping the RSNA published later.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from client.data.columns import Text
from client.data.public.published import (
    ages,
    empty,
    files_under,
    flags,
    no_patients,
    optional_table,
    placed,
    read_table,
    sexes,
    shipped,
    table_of,
    text,
    views,
)
from common.errors import TableError

_log = logging.getLogger(__name__)

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
HEADERS = "kaggle_stage_2_train_images_dicom_headers.csv.gz"


def read(root: Path) -> dict[str, Text]:
    """Read stage_2_train_labels.csv, a row per box or one for an image without any.

    ``pneumonia`` is the challenge's target: an opacity that may be pneumonia. ``lung_opacity`` is
    absent only in images called Normal: "No Lung Opacity / Not Normal" means no opacity *suspicious
    for pneumonia*, and leaves room for a mass, atelectasis or oedema (Shih et al. 2019).

    Raises:
        TableError: if the labels are missing, or a table or the mapping is damaged.
    """
    table = read_table(table_of(root, "rsna", "stage_2_train_labels.csv"), "rsna", ("patientId", "Target"))
    image, row_of = np.unique(table["patientId"], return_inverse=True)
    target = np.bincount(row_of, weights=np.isin(table["Target"], ("1", "1.0"))) > 0
    patient = _patients(root, image)
    return {
        "path": placed(
            image.tolist(), files_under(root, "stage_2_train_images/*"), "stage_2_train_images/{}.dcm"
        ),
        "patient": patient,
        "study": image,
        **_headers(root, image),
        "pneumonia": flags(target),
        "lung_opacity": flags(target, target | (_classes(root, image) == "Normal")),
    }


def _classes(root: Path, image: Text) -> Text:
    if (path := optional_table(root, "stage_2_detailed_class_info.csv")) is None:
        return empty(len(image))
    table = read_table(path, "rsna", ("patientId", "class"))
    told = dict(zip(table["patientId"].tolist(), table["class"].tolist(), strict=True))
    return text(told.get(name, "") for name in image.tolist())


def _headers(root: Path, image: Text) -> dict[str, Text]:
    """Read view, age and sex from the table of DICOM headers, where a copy of it is at hand."""
    if (path := shipped(root, HEADERS)) is None:
        _log.info("rsna: no %s: the view is read from each file, age and sex are not known", HEADERS)
        return {name: empty(len(image)) for name in ("view", "age", "sex")}
    table = read_table(path, "rsna", ("PatientID", "ViewPosition", "PatientAge", "PatientSex"))
    rows = {name: i for i, name in enumerate(table["PatientID"].tolist())}
    row = np.array([rows.get(name, -1) for name in image.tolist()])
    spelled = {
        "view": views(table["ViewPosition"]),
        "age": ages(table["PatientAge"]),
        "sex": sexes(table["PatientSex"]),
    }
    return {name: np.append(cells, "")[row] for name, cells in spelled.items()}


def _patients(root: Path, image: Text) -> Text:
    """Return the NIH patient of each image; without the mapping the image's own number."""
    if not (path := root / MAPPING).is_file():
        no_patients("rsna", f"put {MAPPING} beside the labels")
        return image
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        named = {str(entry["subset_img_id"]): str(entry["img_id"]) for entry in entries}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise TableError(
            f"{MAPPING} is not the mapping the RSNA published",
            found=type(error).__name__,
            fix="a list of entries with subset_img_id and img_id: download it again",
        ) from None
    # 00014197_010.png is image 10 of NIH's patient 14197, which its own table writes without zeros.
    return text(named.get(name, "").partition("_")[0].lstrip("0") for name in image.tolist())
