"""MIMIC-CXR-JPG (Johnson et al. 2019, arXiv 1901.07042): label, metadata and split tables, files/.

Labels are CheXpert's 13 per study: 1, 0, -1 and blank for not mentioned. Where the reports of
MIMIC-CXR (files/p10/p10000032/s50414267.txt) were unpacked beside the images they are read too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text
from client.data.public.chexpert import LABELS
from client.data.public.published import empty, marks, optional_table, read_table, table_of, text, views
from common.errors import TableError

_KEYS = ("subject_id", "study_id")
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_PROBED = 50
"""Studies looked for a report before it is held that there are none: 227,835 misses take minutes."""
_MAX_REPORT = 64 * 2**10
"""Bytes of a report that are read; the published ones are far smaller."""


def read(root: Path) -> dict[str, Text]:
    """Read one row per image of the metadata table, with the labels of its study.

    Age and sex stand in MIMIC-IV, not here. ``report`` and ``indication`` are arrays of Python
    strings, shared between the images of a study: as fixed-width arrays they would fill tens of
    gigabytes.

    Raises:
        TableError: if the metadata or the label table is missing or damaged.
    """
    labels = read_table(
        table_of(root, "mimic", "mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.0.0-negbio.csv"),
        "mimic",
        (*_KEYS, *LABELS.values()),
    )
    path = table_of(root, "mimic", "mimic-cxr-2.0.0-metadata.csv")
    images = read_table(path, "mimic", ("dicom_id", *_KEYS, "ViewPosition"))
    subject, study, image = images["subject_id"], images["study_id"], images["dicom_id"]
    places = text(f"files/p{s[:2]}/p{s}/s{t}" for s, t in zip(subject.tolist(), study.tolist(), strict=True))
    row = _rows_of(labels["study_id"], study)
    columns = {
        "path": np.char.add(np.char.add(np.char.add(places, "/"), image), ".jpg"),
        "patient": subject,
        "study": study,
        "view": views(images["ViewPosition"]),
        "age": empty(len(image)),
        "sex": empty(len(image)),
    } | {finding: np.append(marks(labels[column]), "")[row] for finding, column in LABELS.items()}
    if split := optional_table(root, "mimic-cxr-2.0.0-split.csv"):
        columns["split"] = _split(split, image)
    return columns | _texts(root, places)


def _rows_of(keys: Text, wanted: Text) -> NDArray[np.int64]:
    """Return the row of each wanted key, -1 where there is none."""
    rows = {key: i for i, key in enumerate(keys.tolist())}
    return np.array([rows.get(key, -1) for key in wanted.tolist()], dtype=np.int64)


def _split(path: Path, image: Text) -> Text:
    table = read_table(path, "mimic", ("dicom_id", "split"))
    named = np.append(table["split"], "")[_rows_of(table["dicom_id"], image)]
    return np.select([named == name for name in _SPLITS], list(_SPLITS.values()), named)


def _texts(root: Path, places: Text) -> dict[str, Text]:
    """Read the reports, where there are any."""
    studies, row_of = np.unique(places, return_inverse=True)
    if not any((root / f"{study}.txt").is_file() for study in studies[:_PROBED].tolist()):
        return {}
    reports = [_report(root / f"{study}.txt") for study in studies.tolist()]
    return {
        "indication": _shared([indication_of(report) for report in reports], row_of),
        "report": _shared(reports, row_of),
    }


def _shared(cells: Sequence[str], row_of: NDArray[np.int64]) -> Text:
    return np.array(cells, dtype=object)[row_of]


def _report(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_REPORT).decode("utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise TableError("a report of the mimic layout cannot be read", found=type(error).__name__) from None


_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&]+):", re.MULTILINE)
_INDICATION = {
    "INDICATION", "INDICATIONS", "HISTORY", "CLINICAL HISTORY", "CLINICAL INDICATION",
    "CLINICAL INFORMATION", "REASON FOR EXAM", "REASON FOR EXAMINATION", "HISTORY/INDICATION",
}  # fmt: skip
"""Headings of the request; the reports are free text and use all of them."""


def indication_of(report: str) -> str:
    r"""Return the text under the first heading that names the request, on one line.

    >>> indication_of("INDICATION:  Cough,\n fever.\n\nFINDINGS: Clear.")
    'Cough, fever.'
    """
    headings = list(_HEADING.finditer(report))
    for i, heading in enumerate(headings):
        if heading[1] in _INDICATION:
            end = headings[i + 1].start() if i + 1 < len(headings) else len(report)
            return " ".join(report[heading.end() : end].split())
    return ""
