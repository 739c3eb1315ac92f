"""Where the fields of a report and its sentences begin and end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

HEADINGS: Mapping[str, tuple[str, ...]] = {
    "indication": (
        "indications?", "history", "request",
        r"clinical\s+(?:history|information|indications?|data|details|notes?|context)",
        r"reason\s+for\s+(?:the\s+|this\s+)?(?:exam|examination|study|visit|request)",
    ),
    "comparison": (r"comparisons?(?:\s+studies)?", "priors?"),
    "technique": ("technique", "procedure", "exam(?:ination)?", "study", "views?", "protocol"),
    "findings": ("findings?", "report", "description", "observations?"),
    "impression": ("impressions?", "conclusions?", "opinion", "assessment", "summary", "interpretation"),
}  # fmt: skip
"""Field -> the headings it is written under."""

BODY = "body"
"""Text under no heading: never taken for the indication."""
OTHER = "other"
"""Text under a heading that is not listed."""

_SEEN_FIRST = ("findings", "impression", "comparison", "technique")
_ANY = "|".join(name for names in HEADINGS.values() for name in names)
_KNOWN = re.compile(
    rf"(?<![a-z])(?P<names>(?:{_ANY})(?:\s*(?:/|&|\band\b)\s*(?:{_ANY}))*)(?:\s*:|(?=[ \t]*\n))",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"(?:^|(?<=[.!?])\s*)(?:[A-Z][A-Z /&()-]{2,40}|(?<=\n)[A-Z][A-Za-z /-]{2,30}):", re.MULTILINE
)
_ITEM = " \t-*•0123456789.)"
"""What may stand between the start of a line or sentence and its heading."""

_END = re.compile(
    r"""[.!?]+["')\]]*(?:\s+|$|(?=[A-Z][a-z]))
    | \n\s*\n\s*                  # an empty line
    | \n\s*(?=[-*•]|\d+[.)]\s)    # an item of a list
    | \n\s*(?=[A-Z][a-z])         # a line that starts as a sentence does
    """,
    re.VERBOSE,
)
_NOT_AN_END = re.compile(r"(?:^\s*\(?\d{1,2}|\b(?:dr|mr|mrs|ms|vs|approx|e\.g|i\.e))\.$", re.IGNORECASE)


class Section(NamedTuple):
    """A field of a report: its heading is ``text[start:body]``, what it says ``text[body:end]``."""

    kind: str
    start: int
    body: int
    end: int


def sections(text: str, field: str = "report") -> list[Section]:
    """Divide a text at its headings; the sections cover it without a gap.

    What stands before the first heading belongs to ``field``, or to `BODY` in a whole report. An
    unlisted heading ends an indication (or comparison, technique), so that a description under a
    heading of its own is not taken for part of the request.
    """
    kind = BODY if field == "report" else field
    found = [Section(kind, 0, 0, len(text))]
    for start, body, kind in _headings(text):
        last = found[-1]
        if kind == OTHER and last.kind not in ("indication", "comparison", "technique"):
            continue
        found[-1] = last._replace(end=start)
        found.append(Section(kind, start, body, len(text)))
    return [section for section in found if section.end > section.start]


def _headings(text: str) -> list[tuple[int, int, str]]:
    known = [(m.start(), m.end(), kind) for m in _KNOWN.finditer(text) if (kind := _kind(text, m))]
    taken = {position for start, end, _ in known for position in range(start, end)}
    others = [
        (begin, begin, OTHER)
        for m in _UNKNOWN.finditer(text)
        if not taken & set(range(begin := m.end() - len(m[0].lstrip()), m.end()))
    ]
    return sorted(known + others)


def _kind(text: str, heading: re.Match[str]) -> str:
    """Return the field that a heading opens, '' where it is no heading but part of a sentence."""
    before = text[: heading.start()].rstrip(_ITEM)
    skipped = text[len(before) : heading.start()]
    starts_line = not before or before[-1] == "\n"
    starts_sentence = starts_line or "." in skipped or before[-1] in ";:!?"
    kinds = {
        kind
        for kind, names in HEADINGS.items()
        for name in re.split(r"/|&|\band\b", heading["names"], flags=re.IGNORECASE)
        if re.fullmatch("|".join(names), name.strip(), re.IGNORECASE)
    }
    # Taken for a request, a description would leak; taken for a description, a request is only lost.
    kind = next((k for k in _SEEN_FIRST if k in kinds), "indication")
    if not heading[0].endswith(":"):
        return kind if starts_line else ""
    certain = starts_sentence or heading["names"].isupper() or kind in ("findings", "impression")
    return kind if certain else ""


def split_report(text: str) -> dict[str, str]:
    """Return the fields of a report by name, those of ``HEADINGS``, `BODY` and `OTHER`, without headings.

    >>> split_report("INDICATION: Cough. FINDINGS: Heart size is normal. Impression: Normal.")
    {'indication': 'Cough.', 'findings': 'Heart size is normal.', 'impression': 'Normal.'}
    """
    fields: dict[str, str] = {}
    for section in sections(text):
        said = text[section.body : section.end].strip()
        if said:
            fields[section.kind] = f"{fields[section.kind]}\n{said}" if section.kind in fields else said
    return fields


def sentences(text: str) -> list[tuple[int, int]]:
    """Return where each sentence begins and ends, blanks behind it included; they cover the text.

    >>> [text[a:b] for text in ["1. Nodule of 1.2 cm. No effusion."] for a, b in sentences(text)]
    ['1. Nodule of 1.2 cm. ', 'No effusion.']
    """
    ends = [0]
    for match in _END.finditer(text):
        if not _NOT_AN_END.search(text[ends[-1] : match.start() + 1]):
            ends.append(match.end())
    if ends[-1] < len(text):
        ends.append(len(text))
    return list(pairwise(ends))
