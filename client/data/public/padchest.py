"""PadChest (Bustos et al. 2020, arXiv 1901.07441): the 160K label table and its image folders 0 to 54.

A report's labels are a list of terms of the set's own tree. Each finding here is a set of exact
terms with what lies below them in that tree: a search for parts of words, as others do, takes a
pericardial effusion for a pleural one and a pseudonodule for a nodule.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from client.data.columns import Text
from client.data.public.published import flags, read_table, sexes, table_of, text, views

_log = logging.getLogger(__name__)

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"

TERMS: dict[str, tuple[str, ...]] = {
    "air_trapping": ("air trapping",),
    "aortic_atheromatosis": ("aortic atheromatosis",),
    "aortic_elongation": (
        "aortic elongation", "ascendent aortic elongation", "descendent aortic elongation",
        "supra aortic elongation",
    ),
    "atelectasis": (
        "atelectasis", "atelectasis basal", "laminar atelectasis", "lobar atelectasis", "round atelectasis",
        "segmental atelectasis", "total atelectasis",
    ),
    "bronchiectasis": ("bronchiectasis",),
    "calcified_granuloma": ("calcified granuloma",),
    "cardiomegaly": ("cardiomegaly",),
    "chronic_obstructive_disease": ("COPD signs",),
    "clavicle_fracture": ("clavicle fracture",),
    "consolidation": ("consolidation", "air bronchogram"),
    "costophrenic_angle_blunting": ("costophrenic angle blunting",),
    "edema": ("pulmonary edema",),
    "effusion": (
        "pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax",
        "empyema",
    ),
    "emphysema": ("emphysema",),
    "enlarged_cardiomediastinum": ("mediastinal enlargement", "superior mediastinal enlargement"),
    "enlarged_pulmonary_artery": ("pulmonary artery enlargement",),
    "fibrosis": ("pulmonary fibrosis",),
    "flattened_diaphragm": ("flattened diaphragm",),
    "fracture": (
        "fracture", "rib fracture", "callus rib fracture", "clavicle fracture", "humeral fracture",
        "vertebral fracture",
    ),
    "granuloma": ("granuloma", "calcified granuloma"),
    "hemidiaphragm_elevation": ("hemidiaphragm elevation",),
    "hernia": ("hiatal hernia",),
    "hilar_enlargement": ("hilar enlargement", "vascular hilar enlargement"),
    # Consolidation lies below alveolar pattern in the tree, but has a finding of its own.
    "infiltration": (
        "infiltrates", "interstitial pattern", "ground glass pattern", "reticular interstitial pattern",
        "reticulonodular interstitial pattern", "miliary opacities", "alveolar pattern",
    ),
    "lung_cavity": ("cavitation",),
    "mass": ("mass", "pulmonary mass"),
    "mediastinal_shift": ("mediastinal shift",),
    "nodule": ("nodule", "multiple nodules"),
    "pleural_thickening": (
        "pleural thickening", "apical pleural thickening", "calcified pleural thickening",
    ),
    "pneumonia": ("pneumonia", "atypical pneumonia"),
    "pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "scoliosis": ("scoliosis",),
    "support_device": (
        "pacemaker", "single chamber device", "dual chamber device", "dai", "electrical device", "NSG tube",
        "endotracheal tube", "tracheostomy tube", "chest drain tube", "gastrostomy tube", "catheter",
        "central venous catheter", "central venous catheter via jugular vein",
        "central venous catheter via subclavian vein", "central venous catheter via umbilical vein",
        "reservoir central venous catheter",
    ),
    # Its sequelae are scars.
    "tuberculosis": ("tuberculosis",),
}  # fmt: skip
"""Finding -> exact terms. ``dai`` is the Spanish for an implanted defibrillator."""

_NEEDED = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "Projection", "MethodLabel", "Labels",
)  # fmt: skip
_LIST = re.compile(r"\[(?:'[^'\\]*'(?:, '[^'\\]*')*)?\]")
_YEAR = re.compile(r"[0-9]{4}")
_TERM = re.compile(r"'([^']*)'")


def read(root: Path) -> dict[str, Text]:
    """Read every image of the table, also those without labels, whose findings are ''.

    ``MethodLabel`` (Physician or RNN_model) is passed on for ``[filter]``: three labels in four
    come from a network.

    Raises:
        TableError: if the table is missing or damaged.
    """
    table = read_table(table_of(root, "padchest", TABLE), "padchest", _NEEDED)
    columns = {
        "path": _paths(root, table["ImageDir"], table["ImageID"]),
        "patient": table["PatientID"],
        "study": table["StudyID"],
        "view": views(table["Projection"]),
        "age": _ages(table["PatientBirth"], table["StudyDate_DICOM"]),
        "sex": sexes(table["PatientSex_DICOM"]),
        "MethodLabel": table["MethodLabel"],
    }
    return columns | _labels(table["Labels"])


def _paths(root: Path, folder: Text, image: Text) -> Text:
    if any(root.glob("*.png")):
        # Unpacked into one folder, as the smaller copies of the set are.
        return image
    return np.char.add(np.char.add(folder, "/"), image)


def _ages(birth: Text, date: Text) -> Text:
    """Return the age in the year of the study; only the year of birth is published."""
    pairs = zip(birth.tolist(), date.tolist(), strict=True)
    return text(_age(born.removesuffix(".0"), day[:4]) for born, day in pairs)


def _age(born: str, year: str) -> str:
    if not (_YEAR.fullmatch(born) and _YEAR.fullmatch(year)) or year < born:
        return ""
    return str(int(year) - int(born))


def terms_of(cell: str) -> frozenset[str] | None:
    """Read a cell such as "['nodule', ' pneumonia']"; None if it is no list of terms.

    >>> sorted(terms_of("['nodule', ' pneumonia', '']"))
    ['nodule', 'pneumonia']
    """
    if not _LIST.fullmatch(cell):
        return None
    return frozenset(term.strip() for term in _TERM.findall(cell)) - {""}


def _labels(cells: Text) -> dict[str, Text]:
    kinds, row_of = np.unique(cells, return_inverse=True)
    lists = [terms_of(str(kind)) for kind in kinds]
    unread = np.array([terms is None for terms in lists]) & ~np.isin(kinds, ("", "nan"))
    if unread.any():
        _log.warning("padchest: %d rows have labels that are no list", int(unread[row_of].sum()))
    known = np.array([_tells_absence(terms or frozenset()) for terms in lists], dtype=bool)
    columns = {}
    for finding, names in TERMS.items():
        present = np.array([not (terms or frozenset()).isdisjoint(names) for terms in lists], dtype=bool)
        columns[finding] = flags(present, known | present)[row_of]
    return columns


def _tells_absence(terms: frozenset[str]) -> bool:
    """Tell whether a finding that is not listed was looked for and not seen.

    ``exclude`` marks reports that do not describe a chest radiograph, ``unchanged`` those that
    refer to an earlier one instead of repeating what it showed.
    """
    return "normal" in terms or (bool(terms) and terms.isdisjoint(("exclude", "unchanged")))
