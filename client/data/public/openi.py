"""Indiana University collection of Open-i (Demner-Fushman et al. 2016, doi 10.1093/jamia/ocv080).

NLMCXR_reports.tgz or its ecgen-radiology/*.xml, one report each, and NLMCXR_png or NLMCXR_dcm.
Labels are the MeSH headings that annotators gave each report (``MeSH/major``); the set's
``MeSH/automatic`` terms come from a program and are not used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text
from client.data.public.openi_reports import Report, read_reports
from client.data.public.published import empty, files_under, flags, read_table, shipped, text, views
from common.errors import TableError

_log = logging.getLogger(__name__)

CODES: dict[str, tuple[str, ...]] = {
    "atelectasis": ("pulmonary atelectasis",),
    "cardiomegaly": ("cardiomegaly", "cardiac shadow/enlarged"),
    "effusion": ("pleural effusion", "hydropneumothorax", "hemothorax", "hemopneumothorax"),
    "pneumothorax": ("pneumothorax", "hydropneumothorax", "hemopneumothorax"),
    "pleural_thickening": ("thickening/pleura",),
    "edema": ("pulmonary edema",),
    "consolidation": ("consolidation",),
    "infiltration": ("infiltrate",),
    "pneumonia": ("pneumonia",),
    "tuberculosis": ("tuberculosis",),
    "lung_opacity": ("opacity/lung", "airspace disease", "consolidation", "infiltrate"),
    "nodule": ("nodule",),
    "mass": ("mass/lung",),
    "granuloma": ("granuloma", "calcified granuloma"),
    "calcified_granuloma": ("calcified granuloma",),
    "emphysema": ("emphysema", "pulmonary emphysema", "bullous emphysema"),
    "chronic_obstructive_disease": ("pulmonary disease, chronic obstructive",),
    "interstitial_lung_disease": ("lung diseases, interstitial",),
    "fibrosis": ("pulmonary fibrosis", "fibrosis"),
    "bronchiectasis": ("bronchiectasis",),
    "hernia": ("hernia, hiatal", "hernia, diaphragmatic"),
    "fracture": ("fractures, bone",),
    "scoliosis": ("scoliosis",),
    "flattened_diaphragm": ("diaphragm/flattened",),
    "hemidiaphragm_elevation": ("diaphragm/elevated",),
    "costophrenic_angle_blunting": ("costophrenic angle/blunted",),
    "aortic_elongation": ("aorta/tortuous", "aorta, thoracic/tortuous"),
    "aortic_atheromatosis": ("atherosclerosis/aorta", "atherosclerosis/aorta, thoracic"),
    "support_device": (
        "catheters, indwelling",
        "implanted medical device",
        "medical device",
        "tube, inserted",
    ),
}
"""Finding -> headings that mean it, or a heading with one of its qualifiers.

Exact terms: a search for "emphysema" would take in the subcutaneous kind, and one for "granuloma"
the granulomatous disease of a lymph node.
"""


def read(root: Path) -> dict[str, Text]:
    """Read every image that a report names.

    Each report is another patient's (Demner-Fushman et al. 2016: one study per patient), so the
    report's number stands for the patient. Age and sex are not published.

    Raises:
        TableError: if there are no reports under the root, or one is no plain XML, is far larger
            than any published one, or declares entities.
    """
    pairs = [(report, image) for report in read_reports(root) for image in report.images]
    if not pairs:
        raise TableError("the reports of the openi layout name no image", fix="download them again")
    reports, images = [report for report, _ in pairs], text(image for _, image in pairs)
    uid = text(report.uid for report in reports)
    columns = {
        "path": _paths(root, images),
        "patient": uid,
        "study": uid,
        "view": _views(root, images),
        "age": empty(len(images)),
        "sex": empty(len(images)),
        "indication": text(report.sections["INDICATION"] for report in reports),
        "report": text(_whole(report) for report in reports),
    }
    return columns | label_reports([report.major for report in reports])


def _whole(report: Report) -> str:
    named = ((name, report.sections[name]) for name in ("FINDINGS", "IMPRESSION"))
    return "\n".join(f"{name}: {written}" for name, written in named if written)


def label_reports(headings: Sequence[Sequence[str]]) -> dict[str, Text]:
    """Turn the headings of each report into a column per finding.

    A report is coded for whatever it says, so what is not coded is absent; one that was not coded
    ("no indexing") tells nothing.
    """
    known = np.array([bool(terms) and tuple(terms) != ("no indexing",) for terms in headings], dtype=bool)
    coded = [_spelled(terms) for terms in headings]

    def present(codes: tuple[str, ...]) -> NDArray[np.bool_]:
        return np.array([not terms.isdisjoint(codes) for terms in coded], dtype=bool)

    return {finding: flags(present(codes), known) for finding, codes in CODES.items()}


def _spelled(terms: Sequence[str]) -> frozenset[str]:
    """Return each heading alone and with each of its qualifiers."""
    codes: set[str] = set()
    for term in terms:
        heading, *qualifiers = (part.strip() for part in term.split("/"))
        codes.add(heading)
        codes.update(f"{heading}/{qualifier}" for qualifier in qualifiers)
    return frozenset(codes)


def _paths(root: Path, images: Text) -> Text:
    files = files_under(root, "NLMCXR_png/*.png", "NLMCXR_dcm/*.dcm", "NLMCXR_dcm/*/*.dcm")
    # A DICOM file is called without the prefix of its picture: CXR10_IM-0002-1001 is 10_IM-0002-1001.dcm.
    found = (files.get(name) or files.get(name.removeprefix("CXR")) for name in images.tolist())
    return text(place or f"NLMCXR_png/{name}.png" for place, name in zip(found, images, strict=True))


def _views(root: Path, images: Text) -> Text:
    """Read View Position from the DICOM headers' table, the only place a PNG's view is told."""
    name = "nlmcxr_dicom_metadata.csv.gz"
    if (path := shipped(root, name)) is None:
        _log.warning("openi: no %s beside the reports, so the views of PNG files are not known", name)
        return empty(len(images))
    table = read_table(path, "openi", ("imageid", "View Position"))
    told = dict(zip(table["imageid"].tolist(), views(table["View Position"]).tolist(), strict=True))
    return text(told.get(image, "") for image in images.tolist())
