"""The XML reports of Open-i, read without trusting them: no entities, no files written, no bombs."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from client.data.public.published import not_there
from common.errors import TableError

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


def read_reports(root: Path) -> list[Report]:
    """Read all reports, from the archive or the folder it unpacks to, in the order of their names.

    Raises:
        TableError: if there are none, the archive is damaged, or one is no plain XML in UTF-8, is
            far larger than any published one, or declares a document type or entities.
    """
    folder, archive = root / "ecgen-radiology", root / "NLMCXR_reports.tgz"
    if folder.is_dir():
        files = _unpacked(folder)
    elif archive.is_file():
        files = _packed(archive)
    else:
        raise not_there(root, "openi", "NLMCXR_reports.tgz or ecgen-radiology/")
    return [_parse(name, content) for name, content in sorted(files)]


def _unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.glob("*.xml"):
        if not path.is_file():
            raise _refused(path.name, "is not a file")
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_REPORT + 1)
        except OSError as error:
            raise _refused(path.name, f"cannot be read ({type(error).__name__})") from None
        if len(content) > _MAX_REPORT:
            raise _refused(path.name, "is far larger than a report")
        yield path.name, content


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
