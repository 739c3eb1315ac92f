"""The comparisons beyond federated against local, in words: made their own, and never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.protocol import FEDERATED, LOCAL, PERSONALISED
from server.report_held_out import HELD_OUT
from server.report_schema import Comparison, Loss, Report
from server.report_words import between, counted, listed, signed
from server.report_worse import MACRO

PAIRS = ((PERSONALISED, FEDERATED), (PERSONALISED, LOCAL), (HELD_OUT, LOCAL), (HELD_OUT, FEDERATED))
"""Candidate and reference, in the order of the report."""
_QUESTIONS = {
    (PERSONALISED, FEDERATED): "Made its own, against the released adapter it was made of",
    (PERSONALISED, LOCAL): "Made its own, against training alone",
    (HELD_OUT, LOCAL): "Taking no part, with the others' model, against training alone",
}
"""Pairs a site can lose by. That the others' model is below everyone's is what taking part is worth."""


_CALLED = {FEDERATED: "the federated adapter", LOCAL: "training alone"}
NAMED = {
    "own_against_federated": (PERSONALISED, FEDERATED),
    "out_against_local": (HELD_OUT, LOCAL),
    "out_against_federated": (HELD_OUT, FEDERATED),
}
"""What the page's template calls them."""


@dataclass(frozen=True)
class Question:
    """One way a site may have got worse, and where it did."""

    candidate: str
    reference: str
    asked: str
    answer: str
    certain: tuple[Loss, ...]
    noise: tuple[Loss, ...]


def comparison_of(report: Report, candidate: str, reference: str) -> Comparison | None:
    """Return a further comparison of a report, if it has it."""
    for comparison in report.further:
        if (comparison.candidate, comparison.reference) == (candidate, reference):
            return comparison
    return None


def questions(report: Report) -> list[Question]:
    """Ask of every further pair who got worse by it."""
    asked = []
    for pair, words in _QUESTIONS.items():
        against = comparison_of(report, *pair)
        if against is None:
            continue
        losses = sorted(_losses(report, *pair), key=lambda loss: loss.finding != MACRO)
        certain = tuple(loss for loss in losses if loss.certain)
        noise = tuple(loss for loss in losses if not loss.certain)
        asked.append(Question(*pair, words, _answer(against, losses), certain, noise))
    return asked


def _answer(against: Comparison, losses: Sequence[Loss]) -> str:
    return f"{_begun(_worse(against, losses))}. {_begun(_change(against))}."


def _begun(text: str) -> str:
    return text[0].upper() + text[1:]


def sentences(report: Report) -> list[str]:
    """Say what personalisation and staying outside did, for the head of the report."""
    told = []
    own = comparison_of(report, PERSONALISED, FEDERATED)
    if own is not None:
        sites = report.personal.sites.values() if report.personal else ()
        kept, of = sum(site.kept for site in sites), counted(len(sites), "site")
        who = f"{kept} of {of} kept {'its' if kept == 1 else 'their'} own version"
        losses = _losses(report, PERSONALISED, FEDERATED)
        told.append(f"Made their own: {who}; {_change(own)}; {_worse(own, losses)}.")
    outside = comparison_of(report, HELD_OUT, LOCAL)
    if outside is not None:
        losses = _losses(report, HELD_OUT, LOCAL)
        told.append(f"Taking no part, with the others' model: {_change(outside)}; {_worse(outside, losses)}.")
    worth = comparison_of(report, HELD_OUT, FEDERATED)
    if worth is not None:
        told.append(f"Taking no part, with the others' model: {_change(worth)}.")
    return told


def _losses(report: Report, candidate: str, reference: str) -> list[Loss]:
    return [loss for loss in report.losses if (loss.candidate, loss.reference) == (candidate, reference)]


def _change(against: Comparison) -> str:
    gap = against.site_mean
    unsure = ", which includes zero" if gap.interval[0] <= 0 <= gap.interval[1] else ""
    interval = f"95 % interval {between(gap.interval, signed)}{unsure}"
    where = f"over {counted(len(against.sites), 'site')}"
    return f"mean AUROC {signed(gap.difference)} against {_CALLED[against.reference]} {where} ({interval})"


def _worse(against: Comparison, losses: Sequence[Loss]) -> str:
    macro = [loss for loss in losses if loss.finding == MACRO]
    certain = [f"{loss.site} ({signed(loss.difference)})" for loss in macro if loss.certain]
    noise = [f"{loss.site} ({signed(loss.difference)})" for loss in macro if not loss.certain]
    if certain:
        worse = f"{len(certain)} of {counted(len(against.sites), 'site')} got worse: {listed(certain)}"
    else:
        worse = "no site got worse beyond noise" if noise else "no site got worse"
    return f"{worse}; lower within noise: {listed(noise)}" if noise else worse
