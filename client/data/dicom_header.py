"""The header of a DICOM file: walked, parsed and turned to facts. PS3.x are parts of the standard.

Nothing here costs more memory than the file, or recursion, whatever the file says.
"""

from __future__ import annotations

import re
import struct
import zlib
from datetime import date
from io import BytesIO
from typing import Any, NamedTuple

from pydicom import Dataset, config
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from client.data.facts import Facts
from client.data.reasons import MAX_BYTES, RefusedImage

MAX_DEPTH = 32
"""Sequences within sequences; the deepest real headers have six or so."""
MAX_ELEMENTS = 100_000
"""Elements and items of a header, in all; radiographs have a few hundred."""
MAX_TEXT = 64
"""Characters of a fact: the longest a Long String may be (PS3.5 6.2)."""

_WANTED: list[BaseTag | int] = [tag for keyword in (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyDate", "AccessionNumber", "Modality",
    "Manufacturer", "ManufacturerModelName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "ViewPosition", "StudyInstanceUID", "ViewCodeSequence", "SamplesPerPixel", "PhotometricInterpretation",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit", "BurnedInAnnotation",
    "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope", "VOILUTFunction",
    "ModalityLUTSequence", "VOILUTSequence", "PixelData",
) if (tag := tag_for_keyword(keyword))]  # fmt: skip

_PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs whose length takes four bytes, after two reserved ones (PS3.5 7.1.2)."""

_VIEW_CODES = {
    # PS3.16 CID 4010 DX View, as SNOMED CT and as the older SRT
    "399348003": "AP", "R-10206": "AP",
    "272479007": "PA", "R-10214": "PA", "R-40888": "PA",
    "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL",
    "399067008": "L", "R-102CD": "L",
}  # fmt: skip
_VIEW_SCHEMES = ("SCT", "SRT", "SNM3", "99SDM")


def is_dicom(data: bytes) -> bool:
    """Tell a DICOM file by its prefix, after 128 bytes of preamble (PS3.10 7.1)."""
    return data[128:132] == b"DICM"


def parse(data: bytes) -> Dataset:
    """Parse what is wanted of a DICOM file, pixel data included and not yet decoded.

    Raises:
        RefusedImage: too-deep, too-large, truncated or decode.
    """
    # pydicom's complaints about a malformed value quote it, and it may be a name. Nothing is
    # lost: what cannot be converted still raises. The same for every thread, so never restored.
    config.settings.reading_validation_mode = config.IGNORE
    _walk(data, 132, meta=True)
    file = BytesIO(data)
    file.seek(132)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2))
    syntax = UID(text(meta, "TransferSyntaxUID"))
    start = file.tell()
    if syntax == DeflatedExplicitVRLittleEndian:
        data, start = _inflate(data[start:]), 0
        file = BytesIO(data)
    # Every compressed transfer syntax is explicit and little-endian (PS3.5 A.4).
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    _walk(data, start, "<" if little else ">")
    file.seek(start)
    dataset = read_dataset(
        file, implicit, little, stop_when=lambda tag, *_: tag > _PIXEL_DATA, specific_tags=_WANTED
    )
    dataset.file_meta = meta
    return dataset


def _inflate(data: bytes) -> bytes:
    """Inflate a data set (PS3.5 A.5), up to the size a file may have.

    Raises:
        RefusedImage: too-large, truncated or decode.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        whole = inflater.decompress(data, MAX_BYTES)
    except zlib.error:
        raise RefusedImage("decode", "the deflated data set is damaged") from None
    if inflater.unconsumed_tail:
        raise RefusedImage("too-large", f"more than {MAX_BYTES} bytes once inflated")
    if not inflater.eof:
        raise RefusedImage("truncated", "the deflated data set has no end")
    return whole


class _Level(NamedTuple):
    """A data set, a sequence or an item being walked."""

    end: int
    """Where it ends at the latest; a delimiter may end it sooner."""
    implicit: bool
    sequence: bool = False


def _walk(data: bytes, start: int, order: str = "<", *, meta: bool = False) -> None:
    """Look how deep sequences nest and how many elements there are, without recursion.

    Follows what pydicom would follow, and looks into private and UN values too if they begin like
    a sequence (PS3.5 6.2.2). What it does not understand it leaves to the parser to judge.

    Raises:
        RefusedImage: too-deep, too-large, or truncated if it ends within an element.
    """
    tag_at, length_at = struct.Struct(order + "HH").unpack_from, struct.Struct(order + "L").unpack_from
    item = struct.pack(order + "HH", _ITEM >> 16, _ITEM & 0xFFFF)
    sequence_end = struct.pack(order + "HH", _SEQUENCE_END >> 16, _SEQUENCE_END & 0xFFFF)
    levels = [_Level(len(data), not _looks_explicit(data[start + 4 : start + 6]))]
    at, depth = start, 0
    for _ in range(MAX_ELEMENTS):
        while at + 8 > levels[-1].end:
            ended = levels.pop()
            if not levels:
                if at < ended.end:
                    raise RefusedImage("truncated", "the header ends within an element")
                return
            depth -= ended.sequence
            at = ended.end
        level = levels[-1]
        group, element = tag_at(data, at)
        tag = group << 16 | element
        if level.sequence:
            if tag == _SEQUENCE_END:
                levels.pop()
                depth -= 1
            else:
                levels.append(_Level(_end(length_at(data, at + 4)[0], at + 8, level.end), level.implicit))
            at += 8
            continue
        if tag == _ITEM_END:
            if len(levels) == 1:
                return
            levels.pop()
            at += 8
            continue
        if meta and group != 2:
            return
        vr = b"" if level.implicit else data[at + 4 : at + 6]
        if not _looks_explicit(vr):
            vr, length, at = b"", length_at(data, at + 4)[0], at + 8
        elif vr in _LONG_VRS:
            if at + 12 > len(data):
                raise RefusedImage("truncated", "the header ends within an element")
            length, at = length_at(data, at + 8)[0], at + 12
        else:
            length, at = struct.unpack_from(order + "H", data, at + 6)[0], at + 8
        if tag == _PIXEL_DATA and len(levels) == 1 and vr not in (b"SQ", b"UN"):
            if length == _UNDEFINED and data.rfind(sequence_end, at) < 0:
                raise RefusedImage("truncated", "the encapsulated pixels have no end")
            return
        if len(levels) == 1 and length != _UNDEFINED and at + length > level.end:
            raise RefusedImage("truncated", "the header ends within an element")
        if _is_sequence(tag, vr, length, data[at : at + 4] == item):
            depth += 1
            if depth > MAX_DEPTH:
                raise RefusedImage("too-deep", f"sequences nest more than {MAX_DEPTH} deep")
            levels.append(_Level(_end(length, at, level.end), level.implicit or not vr, True))
        elif length == _UNDEFINED:
            delimiter = data.find(sequence_end, at)
            at = level.end if delimiter < 0 else delimiter + 8
        else:
            at = _end(length, at, level.end)
    raise RefusedImage("too-large", f"more than {MAX_ELEMENTS} elements in the header")


def _looks_explicit(vr: bytes) -> bool:
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


def _is_sequence(tag: int, vr: bytes, length: int, has_item: bool) -> bool:
    if vr == b"SQ" or (vr in (b"", b"UN") and has_item):
        return True
    if length != _UNDEFINED or vr not in (b"", b"UN"):
        return False
    return vr == b"UN" or (dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ")


def _end(length: int, at: int, latest: int) -> int:
    return latest if length == _UNDEFINED else min(at + length, latest)


def facts(header: Dataset) -> Facts:
    """Read what a header says about its image; '' for what it does not, or not in a usable form."""
    return Facts(
        view=view(header),
        patient=text(header, "PatientID"),
        study=_uid(header, "StudyInstanceUID"),
        instance=_uid(header, "SOPInstanceUID"),
        accession=text(header, "AccessionNumber"),
        sex=sex if (sex := text(header, "PatientSex").upper()) in ("M", "F") else "",
        age=age(header),
        scanner=_clean(f"{text(header, 'Manufacturer')} {text(header, 'ManufacturerModelName')}"),
    )


def view(header: Dataset) -> str:
    """Return View Position, or what View Code Sequence says in its place (PS3.3 C.8.11.5)."""
    position = text(header, "ViewPosition").upper()
    if position:
        # A Code String has 16 characters at most (PS3.5 6.2); more of them is something else.
        return position if re.fullmatch(r"[A-Z0-9 _]{1,16}", position) else ""
    items = value(header, "ViewCodeSequence")
    for item in items if isinstance(items, Sequence) else ():
        code = text(item, "CodeValue")
        if code in _VIEW_CODES and text(item, "CodingSchemeDesignator").upper() in _VIEW_SCHEMES:
            return _VIEW_CODES[code]
    return ""


def age(header: Dataset) -> str:
    """Return Patient Age as an Age String (PS3.5 6.2), or the years from birth to study."""
    if match := re.fullmatch(r"(\d{1,3}) ?([DWMY]?)", text(header, "PatientAge").upper()):
        return f"{int(match[1]):03d}{match[2] or 'Y'}"
    born, seen = _date(header, "PatientBirthDate"), _date(header, "StudyDate")
    if not born or not seen or born > seen:
        return ""
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return f"{years:03d}Y" if years < 150 else ""


def _date(header: Dataset, keyword: str) -> date | None:
    digits = text(header, keyword).replace(".", "")  # the dots are of ACR-NEMA (PS3.5 6.2)
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) if len(digits) == 8 else None
    except ValueError:
        return None


def value(header: Dataset, keyword: str) -> Any:
    """Return an element's value; None if it is absent or cannot be converted."""
    try:
        return header.get(keyword)
    except Exception:  # noqa: BLE001  (pydicom raises a dozen kinds for a malformed value)
        return None


def text(header: Dataset, keyword: str) -> str:
    """Return an element's value as printable text; '' if it is absent or cannot be converted."""
    got = value(header, keyword)
    if isinstance(got, MultiValue):
        got = "\\".join(map(str, got))
    return _clean(str(got)) if isinstance(got, str | int | float) else ""


def _clean(raw: str) -> str:
    """Keep printable characters, 64 of them at most: facts are shown, compared and stored."""
    return "".join(filter(str.isprintable, raw[: 8 * MAX_TEXT])).strip()[:MAX_TEXT].strip()


def _uid(header: Dataset, keyword: str) -> str:
    uid = text(header, keyword)
    return uid if re.fullmatch(r"[0-9.]*", uid) else ""
