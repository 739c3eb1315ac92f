"""The notation of the phrase lists, and where a phrase stands in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_GAP = r"(?:[\s_\u00ad\u2010-\u2015-]+)"
"""Between the words of a phrase: blanks, line breaks, hyphens and dashes of any kind."""

_LINKS = (
    "is", "are", "was", "were", "be", "to", "appears?", "appeared", "seems?", "remains?", "remained",
    "again", "also", "still", "now", "not", "no", "longer", "grossly", "in", "size", "silhouette",
    "shadow", "contours?", "minimally", "mildly", "moderately", "markedly", "massively", "severely",
    "slightly", "somewhat", "significantly", "borderline", "chronically", "likely", "probably",
    "possibly", "persistently", "heavily", "stably", "stable", "unchanged", "bilaterally",
)  # fmt: skip
"""Words that ``~`` may pass between a thing and what is said of it."""

_LINK = rf"(?:{_GAP}(?:{'|'.join(_LINKS)})){{0,6}}"
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


class Match(NamedTuple):
    """Where a phrase stands; ``rule`` names the list it is from."""

    start: int
    end: int
    rule: str

    def overlaps(self, other: Match) -> bool:
        """Tell whether the two share a character."""
        return self.start < other.end and other.start < self.end


def fold(text: str) -> str:
    """Return the text in lower case with every character in its place.

    ``str.lower`` may lengthen a text, and offsets would no longer point into the original.

    >>> fold("No EFFUSION")
    'no effusion'
    """
    return text.translate(_LOWER)


def plain(name: str) -> str:
    """Write a name of the vocabulary as a phrase.

    >>> plain("nodule/mass"), plain("lung_opacity")
    ('nodule mass', 'lung opacity')
    """
    return re.sub(r"[\W_]+", " ", name)


def compile_phrases(phrases: Iterable[str]) -> re.Pattern[str]:
    r"""Compile phrases to one pattern over folded text.

    A blank is a gap, ``*`` any further letters, ``~`` up to six linking words such as *is mildly*;
    brackets, bars, braces and question marks are those of regular expressions.

    >>> pattern = compile_phrases(["heart ~ enlarged", "opaci*"])
    >>> [m[0] for m in pattern.finditer("heart size is\nenlarged, opacities")]
    ['heart size is\nenlarged', 'opacities']
    """
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile("|".join(rf"(?<![a-z0-9])(?:{_expression(p)})(?![a-z0-9])" for p in longest_first))


def _expression(phrase: str) -> str:
    # Bounded, so that a cell that is no prose costs no more than prose.
    linked = phrase.replace("(", "(?:").replace("*", "[a-z]{0,60}").replace(" ~", "~")
    return linked.replace(" ", _GAP).replace("~", _LINK)


def compile_lists(lists: Mapping[str, Iterable[str]]) -> dict[str, re.Pattern[str]]:
    """Compile every list of phrases under its name."""
    return {rule: compile_phrases(phrases) for rule, phrases in lists.items()}


def find(patterns: Mapping[str, re.Pattern[str]], folded: str) -> list[Match]:
    """Return every match of every list in the order of the text; matches of two lists may overlap."""
    return sorted(
        Match(match.start(), match.end(), rule)
        for rule, pattern in patterns.items()
        for match in pattern.finditer(folded)
    )
