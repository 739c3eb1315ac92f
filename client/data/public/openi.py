"""Indiana University collection of Open-i (Demner-Fushman et al. 2016, doi 10.1093/jamia/ocv080).

NLMCXR_reports.tgz or its ecgen-radiology/*.xml, one report each, and NLMCXR_png or NLMCXR_dcm.
Labels are the MeSH headings that annotators gave each report (``MeSH/major``); the set's
``MeSH/automatic`` terms come from a program and are not used.
"""

from __future__ import annotations

import gzip
import logging
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, listing
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

_MAX_REPORT = 256 * 2**10
_MAX_ARCHIVE = 256 * 2**20
"""Bytes, unpacked: the largest published report has 9 kB, all of them 21 MB."""
_SPACE = re.compile(r"\s+")


class Report(NamedTuple):
    """One XML report."""

    uid: str
    images: tuple[str, ...]
    sections: dict[str, str]
    """Label of the AbstractText -> its text; '' where the report has none."""
    major: tuple[str, ...]
    """Annotators' headings with qualifiers, lower case: ``opacity/lung/base``."""
    automatic: tuple[str, ...]


def read(root: Path) -> dict[str, Text]:
    """Read every image that a report names.

    Each report is another patient's (Demner-Fushman et al. 2016: one study per patient), so the
    report's number stands for the patient. Age and sex are not published.

    Raises:
        TableError: if there are no reports under the root, or one is no plain XML, is far larger
            than any published one, or declares entities.
    """
    reports = [report for report in read_reports(root) for _ in report.images]
    images = text(image for report in _each(reports) for image in report.images)
    rows = len(images)
    if not rows:
        raise TableError("the reports of the openi layout name no image", fix="download them again")
    uid = text(report.uid for report in reports)
    columns = {
        "path": _paths(root, images),
        "patient": uid,
        "study": uid,
        "view": _views(root, images),
        "age": empty(rows),
        "sex": empty(rows),
        "indication": text(report.sections["INDICATION"] for report in reports),
        "report": text(_whole(report) for report in reports),
    }
    return columns | label_reports([report.major for report in reports])


def _each(repeated: list[Report]) -> Iterator[Report]:
    last = None
    for report in repeated:
        if report is not last:
            yield report
        last = report


def _whole(report: Report) -> str:
    named = ((name, report.sections[name]) for name in ("FINDINGS", "IMPRESSION"))
    return "\n".join(f"{name}: {written}" for name, written in named if written)


def label_reports(headings: list[tuple[str, ...]]) -> dict[str, Text]:
    """Turn the headings of each report into a column per finding.

    A report is coded for whatever it says, so what is not coded is absent; one that was not coded
    ("no indexing") tells nothing.
    """
    known = np.array([bool(terms) and terms != ("no indexing",) for terms in headings], dtype=bool)
    coded = [_spelled(terms) for terms in headings]

    def present(codes: tuple[str, ...]) -> NDArray[np.bool_]:
        return np.array([not terms.isdisjoint(codes) for terms in coded], dtype=bool)

    return {finding: flags(present(codes), known) for finding, codes in CODES.items()}


def _spelled(terms: tuple[str, ...]) -> frozenset[str]:
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


def read_reports(root: Path) -> list[Report]:
    """Read all reports, from the archive or the folder it unpacks to, in the order of their names."""
    folder, archive = root / "ecgen-radiology", root / "NLMCXR_reports.tgz"
    if folder.is_dir():
        files = _unpacked(folder)
    elif archive.is_file():
        files = _packed(archive)
    else:
        there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        raise TableError(
            "the openi layout needs NLMCXR_reports.tgz or ecgen-radiology/ in data.root",
            found=listing(dict.fromkeys(there)) or "an empty or missing folder",
            fix="set data.root to the folder the reports were put in; see docs/public-sets.md",
        )
    return [_parse(name, content) for name, content in sorted(files)]


def _unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.glob("*.xml"):
        if path.stat().st_size > _MAX_REPORT:
            raise _refused(path.name, "is far larger than a report")
        yield path.name, path.read_bytes()


class _Bounded(gzip.GzipFile):
    """An unpacking stream that stops once it has given more than any published archive holds."""

    _given = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._given += len(data)
        if self._given > _MAX_ARCHIVE:
            raise _refused("NLMCXR_reports.tgz", "unpacks to far more than the published archive")
        return data


def _packed(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Read the archive's reports in memory: nothing is written, so no member's name can matter."""
    try:
        with _Bounded(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                if not (member.isfile() and member.name.endswith(".xml")):
                    continue
                if member.size > _MAX_REPORT:
                    raise _refused(Path(member.name).name, "is far larger than a report")
                if content := members.extractfile(member):
                    yield Path(member.name).name, content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise TableError(
            f"{archive.name} cannot be read", found=type(error).__name__, fix="download it again"
        ) from None


def _refused(name: str, why: str) -> TableError:
    return TableError(f"openi: {name} {why}", fix="download the reports again; see docs/public-sets.md")


def _parse(name: str, content: bytes) -> Report:
    try:
        written = content.decode("utf-8")
    except UnicodeDecodeError:
        raise _refused(name, "is not UTF-8 text") from None
    # Entities can grow a small file to gigabytes or read other files; no published report has any.
    # Decoded first, so that no other encoding can hide them.
    if "<!DOCTYPE" in written or "<!ENTITY" in written:
        raise _refused(name, "declares a document type or entities")
    try:
        tree = ElementTree.fromstring(written)
    except ElementTree.ParseError:
        raise _refused(name, "is not XML") from None
    uid = tree.find("uId")
    if uid is None or not uid.get("id"):
        raise _refused(name, "has no uId")
    sections = dict.fromkeys(("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION"), "")
    for part in tree.iter("AbstractText"):
        if (label := part.get("Label", "")) in sections:
            sections[label] = _SPACE.sub(" ", part.text or "").strip()
    return Report(
        uid=str(uid.get("id")),
        images=tuple(image for node in tree.iter("parentImage") if (image := node.get("id"))),
        sections=sections,
        major=_terms(tree, "MeSH/major"),
        automatic=_terms(tree, "MeSH/automatic"),
    )


def _terms(tree: ElementTree.Element, place: str) -> tuple[str, ...]:
    return tuple((node.text or "").strip().lower() for node in tree.iterfind(f".//{place}"))
