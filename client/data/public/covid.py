"""COVID-19 image data collection (Cohen et al. 2020, arXiv 2006.11988): metadata.csv and images/.

Outcomes are findings here (`mortality`, `icu`, `intubated`, `severe`), laboratory values clinical
variables. `report` holds the clinical notes: they often tell the outcome.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text
from client.data.public.published import ages, flags, read_table, sexes, table_of, text, views, yes_no
from common.clinical import suggest_variables

_log = logging.getLogger(__name__)

_NEEDED = (
    "patientid", "offset", "sex", "age", "finding", "survival", "intubated", "went_icu", "view",
    "modality", "folder", "filename", "clinical_notes",
)  # fmt: skip
_VARIABLES = {
    "offset": "offset",
    "temperature": "temperature",
    "oxygen_saturation": "pO2_saturation",
    "leukocytes": "leukocyte_count",
    "neutrophils": "neutrophil_count",
    "lymphocytes": "lymphocyte_count",
}
"""Variable -> published column. The collection's SCHEMA.md gives °C, % and 10^3/uL, our units."""


def read(root: Path) -> dict[str, Text]:
    """Read the radiographs of ``metadata.csv``; CT slices are left out and counted in the log.

    A column that the collection does not publish and that bears the name of a clinical variable
    is read as well.

    Raises:
        TableError: if metadata.csv is missing, damaged or lacks a column.
    """
    table = read_table(table_of(root, "covid", "metadata.csv"), "covid", _NEEDED, ["*"])
    radiograph = table["modality"] == "X-ray"
    if not radiograph.all():
        _log.info("covid: %d of %d images are no radiographs", int((~radiograph).sum()), len(radiograph))
    table = {name: cells[radiograph] for name, cells in table.items()}
    patient, offset = table["patientid"], table["offset"]
    path = text(f"{folder}/{name}" for folder, name in zip(table["folder"], table["filename"], strict=True))
    columns = {
        "path": path,
        "patient": patient,
        # Examinations have no number of their own; a patient's images of one day are one.
        "study": np.where(offset != "", _joined(patient, offset), path),
        "view": views(table["view"]),
        "age": ages(table["age"]),
        "sex": sexes(table["sex"]),
        "report": table["clinical_notes"],
    }
    columns |= _diagnoses(table) | _outcomes(table)
    published = {name: table[column] for name, column in _VARIABLES.items() if column in table}
    published["male"] = np.select([columns["sex"] == "M", columns["sex"] == "F"], ["1", "0"], "")
    if "needed_supplemental_O2" in table:
        published["supplemental_oxygen"] = yes_no(table["needed_supplemental_O2"])
    added = {name: table[column] for name, column in suggest_variables(table).items()}
    return added | columns | published


def _joined(left: Text, right: Text) -> Text:
    return np.char.add(np.char.add(left, "/"), right)


def _diagnoses(table: dict[str, Text]) -> dict[str, Text]:
    """Read ``finding``, a path such as Pneumonia/Viral/COVID-19 down the collection's hierarchy."""
    kinds, row_of = np.unique(table["finding"], return_inverse=True)
    levels = [str(kind).split("/") for kind in kinds]

    def has(name: str) -> NDArray[np.bool_]:
        return np.array([name in level for level in levels], dtype=bool)[row_of]

    # todo and Unknown are images nobody has described yet.
    known = np.array([level[0] not in ("", "todo", "Unknown") for level in levels], dtype=bool)[row_of]
    pneumonia = has("Pneumonia")
    # Plain Pneumonia leaves the cause open.
    cause = known & (~pneumonia | np.array([len(level) > 1 for level in levels], dtype=bool)[row_of])
    tested = yes_no(table.get("RT_PCR_positive", np.full(len(row_of), "")))
    # A positive test counts although nothing is seen: COVID-19 is what the patient has.
    covid = has("COVID-19") | (tested == "1")
    return {
        "pneumonia": flags(pneumonia, known),
        "bacterial_pneumonia": flags(has("Bacterial"), cause),
        "viral_pneumonia": flags(has("Viral"), cause),
        "tuberculosis": flags(has("Tuberculosis"), known),
        "covid": flags(covid, cause | covid | (tested == "0")),
    }


def _outcomes(table: dict[str, Text]) -> dict[str, Text]:
    """Read how it went: 1 and 0 as stated, '' where it is not."""
    survived = yes_no(table["survival"])
    died = np.select([survived == "0", survived == "1"], ["1", "0"], "")
    icu = _ever(table, "went_icu", "in_icu")
    intubated = _ever(table, "intubated", "intubation_present")
    stated = np.stack([died, icu, intubated])
    severe = np.select([(stated == "1").any(axis=0), (stated == "0").any(axis=0)], ["1", "0"], "")
    return {"mortality": died, "icu": icu, "intubated": intubated, "severe": severe}


def _ever(table: dict[str, Text], ever: str, now: str) -> Text:
    """Combine "at any point" with "when the image was taken": yes to either is yes, not yet is not no."""
    stated = yes_no(table[ever])
    return np.where(yes_no(table[now]) == "1", "1", stated) if now in table else stated
