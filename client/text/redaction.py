"""Taking out of a report what states, denies or gives away a finding.

Redaction only deletes: what is left is the original without the logged spans, character by
character. It is repeated until nothing is found, because a deletion may bring two words together
that form a term; so redacting twice changes nothing. It is not de-identification: names, dates and
numbers stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from typing import Literal

from client.text.phrases import Match, compile_lists, find, fold, plain
from client.text.sections import sections, sentences
from client.text.terms import GIVE_AWAYS, LOOKALIKES, SIGNS, TERMS
from common.errors import ConfigError, closest
from common.findings import SYNONYMS
from common.sections import Redaction

MODES: tuple[Redaction, ...] = ("none", "word", "sentence", "indication")
Unit = Literal["word", "sentence"]

_BLANK = re.compile(
    r"^[\s.,;:)\]]+|(?<=\s)\s+|\s+(?=[.,;:)\]]|$)|(?<=[.,;:(\[])[.,;:]+|[(\[][)\]]", re.MULTILINE
)
"""What deletions leave over: blanks in a row, punctuation behind punctuation, empty brackets."""
_PIECE = re.compile(r"[^.,;:!?()\[\]]+")
"""No phrase goes beyond a punctuation mark, and reports repeat themselves between two of them."""


@dataclass(frozen=True, order=True)
class Span:
    """One deletion: characters ``[start, end)`` of the original, and the rule that asked for it.

    The rule is a finding, a list of `client.text.terms.GIVE_AWAYS`, ``section`` for a field that is
    not the indication, or ``blank`` for what other deletions left over.
    """

    start: int
    end: int
    rule: str


@dataclass(frozen=True)
class Redacted:
    """What is left of a text, and the log of what went; the log holds no text."""

    text: str
    spans: tuple[Span, ...]


@cache
def _names() -> dict[str, re.Pattern[str]]:
    """Every name of every finding: they stand in no text that is used."""
    lists = {}
    for finding, terms in TERMS.items():
        vocabulary = map(plain, (finding, *SYNONYMS[finding]))
        lists[finding] = (*terms, *LOOKALIKES.get(finding, ()), *vocabulary)
    return compile_lists(lists)


@cache
def _give_aways() -> dict[str, re.Pattern[str]]:
    """Outside the indication these go as well."""
    return compile_lists({**SIGNS, **GIVE_AWAYS})


def parse_mode(name: str) -> Redaction:
    """Return the mode of this name.

    Raises:
        ConfigError: if there is none.
    """
    for mode in MODES:
        if mode == name:
            return mode
    fix = closest(name, MODES) or f"choose among {', '.join(MODES)}"
    raise ConfigError("there is no such redaction", found=repr(name), fix=fix)


def redact(
    text: str, mode: Redaction = "indication", *, field: str = "report", unit: Unit = "word"
) -> Redacted:
    """Delete from a text what gives a finding away.

    ``word`` deletes names of findings, signs and give-aways; ``sentence`` the sentences that hold
    one; ``indication`` every field but the indication. The indication was written before the image
    was seen: in every mode it loses the names of findings and nothing else, so that "acute chest
    pain, no fever" stays. Denials stay everywhere: "no fever" must not become "fever".

    Args:
        field: What the text is: ``report`` for a whole one, divided by its headings, or the name of
            a field of `client.text.sections`.
        unit: Whether ``indication`` deletes the names or their sentences.

    >>> redact("INDICATION: Cough, known effusion. FINDINGS: No effusion.").text
    'INDICATION: Cough, known.'

    Raises:
        ConfigError: if the mode is unknown.
    """
    parse_mode(mode)
    current, kept = text, list(range(len(text)))
    spans: list[Span] = []
    while doomed := _doomed(current, mode, field, unit):
        while doomed:
            spans += _logged(doomed, kept)
            gone = {position for match in doomed for position in range(match.start, match.end)}
            kept = [position for k, position in enumerate(kept) if k not in gone]
            current = "".join(text[position] for position in kept)
            doomed = _left_over(current, field)
    return Redacted(current, tuple(sorted(spans)))


def survivors(text: str, field: str = "report") -> list[Match]:
    """Return what redaction would still find in a text: nothing, once it is redacted."""
    return _doomed(text, "word", field, "word")


def _doomed(text: str, mode: Redaction, field: str, unit: Unit) -> list[Match]:
    """Return what to delete next, in the order of the text."""
    doomed: list[Match] = []
    if mode == "none":
        return doomed
    for section in sections(text, field):
        requested = section.kind == "indication"
        if mode == "indication" and not requested:
            doomed.append(Match(section.start, section.end, "section"))
            continue
        body = text[section.body : section.end]
        found = [
            Match(piece.start() + m.start, piece.start() + m.end, m.rule)
            for piece in _PIECE.finditer(fold(body))
            for m in _found(piece[0], requested)
        ]
        if (unit if mode == "indication" else mode) == "sentence":
            found = _whole_sentences(body, found)
        doomed += [Match(section.body + m.start, section.body + m.end, m.rule) for m in found]
    return doomed


@lru_cache(maxsize=2**16)
def _found(piece: str, requested: bool) -> tuple[Match, ...]:
    found = find(_names(), piece)
    return tuple(found if requested else sorted(found + find(_give_aways(), piece)))


def _whole_sentences(text: str, found: Sequence[Match]) -> list[Match]:
    """Return the sentences that hold a match, each under the rule of its first."""
    doomed = []
    for start, end in sentences(text):
        begin = end - len(text[start:end].lstrip())
        rule = next((m.rule for m in found if m.start < end and begin < m.end), None)
        if rule:
            doomed.append(Match(begin, end, rule))
    return doomed


def _left_over(text: str, field: str) -> list[Match]:
    empty = [s for s in sections(text, field) if not text[s.body : s.end].strip()]
    return [Match(s.start, s.end, "blank") for s in empty] or [
        Match(m.start(), m.end(), "blank") for m in _BLANK.finditer(text) if m.end() > m.start()
    ]


def _logged(doomed: Sequence[Match], kept: Sequence[int]) -> list[Span]:
    """Say deletions in characters of the original, without overlaps and without gaps."""
    rule_of: dict[int, str] = {}
    for match in doomed:
        for k in range(match.start, match.end):
            rule_of.setdefault(kept[k], match.rule)
    runs = groupby(enumerate(sorted(rule_of)), key=lambda item: (item[1] - item[0], rule_of[item[1]]))
    spans = []
    for (_, rule), items in runs:
        positions = [position for _, position in items]
        spans.append(Span(positions[0], positions[-1] + 1, rule))
    return spans
