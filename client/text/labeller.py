"""What a report says of each finding: present, denied, uncertain or nothing.

Rules in the manner of NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029): a cue points to one
side and reaches to the end of its clause, or of the list it opens. Cues and terms are our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from client.text.cues import BORDERLINE, CUES, NORMAL
from client.text.phrases import Match, compile_lists, find, fold
from client.text.sections import sections, sentences
from client.text.terms import LOOKALIKES, TERMS

PRESENT, DENIED, UNCERTAIN = 1, 0, -1

UNREAD = ("indication", "comparison", "technique")
"""What was asked, compared or done is no answer."""

IMPLIED: Mapping[str, tuple[str, int]] = {
    "nodule": ("lung_lesion", PRESENT),
    "mass": ("lung_lesion", PRESENT),
    "costophrenic_angle_blunting": ("effusion", UNCERTAIN),
}
"""Finding -> what it says of another that the report does not name.

Blunting is a little fluid or an old scar: of the Indiana reports that mention it, most are coded
without effusion.
"""

_PRECEDENCE = {DENIED: 0, UNCERTAIN: 1, PRESENT: 2}
_STATUS = {"deny": DENIED, "doubt": UNCERTAIN}

_STOP = re.compile(
    r"[;:]|\b(?:but|however|although|though|yet|except|aside from|apart from|other than|while|whereas"
    r"|because|despite|there (?:is|are|has|have))\b"
)
_SEPARATOR = re.compile(r",|\band\b")
_NEW_CLAUSE = re.compile(
    r"(?:[\s,]|and\s|with\s)*(?:there|the|this|these|that|a|an|its?|mild(?:ly)?|moderate(?:ly)?|small"
    r"|stable|unchanged|persistent|new|increased|decreased|minimal(?:ly)?|probable|possible|again"
    r"|multiple|right|left|bilateral|bibasilar|heart|cardiac|lungs?|mediastin\w+|low|status|interval"
    r"|patient)\b"
)
"""What opens a statement of its own and not the next item of a list."""
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|remains?|appears?|there|noted|seen|present)\b")
_OR = re.compile(r"\b(?:or|nor)\b")


@cache
def _compiled() -> tuple[dict[str, re.Pattern[str]], ...]:
    return tuple(map(compile_lists, (TERMS, LOOKALIKES, CUES, NORMAL, BORDERLINE)))


def label_report(text: str) -> dict[str, int]:
    """Label a report: finding -> 1 present, 0 denied, -1 uncertain; what it does not mention is absent.

    Over sentences, present goes before uncertain and uncertain before denied. "Normal chest"
    denies no finding in particular.

    >>> label_report("Small effusion, no edema or pneumothorax. Possible pneumonia. Heart size is normal.")
    {'effusion': 1, 'edema': 0, 'pneumothorax': 0, 'pneumonia': -1, 'cardiomegaly': 0}
    """
    labels: dict[str, int] = {}
    for section in sections(text):
        if section.kind in UNREAD:
            continue
        body = fold(text[section.body : section.end])
        for start, end in sentences(text[section.body : section.end]):
            for finding, status in _statements(body[start:end]):
                if _PRECEDENCE[status] >= _PRECEDENCE[labels.get(finding, DENIED)]:
                    labels[finding] = status
    for finding, (other, status) in IMPLIED.items():
        if (own := labels.get(finding, DENIED)) != DENIED:
            labels.setdefault(other, status if own == PRESENT else UNCERTAIN)
    return labels


def _statements(sentence: str) -> list[tuple[str, int]]:
    """Return finding and status of every statement in a folded sentence."""
    terms, lookalikes, cues, normal, borderline = _compiled()
    told = [(m.rule, DENIED) for m in find(normal, sentence)]
    told += [(m.rule, UNCERTAIN) for m in find(borderline, sentence)]
    if not (mentions := find(terms, sentence)):
        return told
    others = find(lookalikes, sentence)
    active = _longest(find(cues, sentence))
    scopes = [_scope(sentence, cue, active) for cue in active if cue.rule]
    for mention in mentions:
        if any(other.rule == mention.rule and other.overlaps(mention) for other in others):
            continue
        acting = {scope.rule for scope in scopes if scope.overlaps(mention)}
        if "ignore" not in acting:
            # Denial first: "no sign suggestive of pneumonia" denies it.
            action = next((action for action in _STATUS if action in acting), None)
            told.append((mention.rule, _STATUS[action] if action else PRESENT))
    return told


def _longest(cues: list[Match]) -> list[Match]:
    """Leave out the cues inside a longer one: "no" of "no change", "not" of "not excluded"."""
    return [
        cue
        for cue in cues
        if not any(
            other.start <= cue.start and cue.end <= other.end and other[:2] != cue[:2] for other in cues
        )
    ]


def _scope(sentence: str, cue: Match, cues: list[Match]) -> Match:
    """Return what a cue speaks of, itself included, under the name of its action."""
    action = cue.rule.strip("<>")
    # "Effusion is possible" looks back, "there is possible effusion" ahead.
    if cue.rule.endswith(">") or sentence[: cue.start].rstrip().endswith("there"):
        return Match(cue.start, _ahead(sentence, cue.end), action)
    spoken_for = max((other.end for other in cues if other.end <= cue.start), default=0)
    return Match(_back(sentence, spoken_for, cue.start), cue.end, action)


def _ahead(sentence: str, start: int) -> int:
    """Return where the clause or list that begins at ``start`` ends."""
    stop = _STOP.search(sentence, start)
    limit = stop.start() if stop else len(sentence)
    for separator in _SEPARATOR.finditer(sentence, start, limit):
        rest = sentence[separator.start() : limit]
        item = rest[1:].partition(",")[0]
        bare = separator[0] != "," or _OR.search(rest) or not _VERB.search(item)
        if _NEW_CLAUSE.match(rest) or not bare:
            return separator.start()
    return limit


def _back(sentence: str, begin: int, end: int) -> int:
    """Return where the clause or list that ends at ``end`` begins, ``begin`` at the earliest."""
    begin = max((stop.end() for stop in _STOP.finditer(sentence, begin, end)), default=begin)
    for separator in reversed(list(_SEPARATOR.finditer(sentence, begin, end))):
        if separator[0] == "," and not _OR.search(sentence, separator.end(), end):
            return separator.end()
        if separator[0] == "and" and _VERB.search(sentence, begin, separator.start()):
            return separator.end()
    return begin
