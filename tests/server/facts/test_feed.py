"""The feed tells every event that says something, with its reason and its tone."""

from __future__ import annotations

from pathlib import Path

import pytest

import common.errors
from common.errors import FedcxrError
from server.exchange import NODE_ERROR
from server.facts.feed import feed, feed_after
from server.facts.reasons import REASONS, reason_of
from server.facts.runs import Runs
from server.facts.view import LedgerView


def test_newest_first_and_page_by_page(view: LedgerView) -> None:
    everything = feed(view, limit=10_000)
    assert [entry.id for entry in everything] == sorted((e.id for e in view.events()), reverse=True)
    pages, before = [], None
    while page := feed(view, before, limit=17):
        assert len(page) <= 17
        pages += page
        before = page[-1].id
    assert pages == everything
    newest = everything[5].id
    assert feed_after(view, newest) == everything[:5][::-1]
    assert feed_after(view, everything[0].id) == []


def test_what_says_nothing_is_not_told_and_costs_no_place(told) -> None:
    for _ in range(30):
        told.tell("answered", site="a", code="")
    told.tell("plan")
    for _ in range(30):
        told.tell("answered", site="a", code="")
    view = told.run.view()
    assert [entry.kind for entry in feed(view, limit=5)] == ["plan"]
    assert [entry.kind for entry in feed_after(view, 0)] == ["plan"]


def test_tones_and_words(told) -> None:
    told.tell(
        "rejected", "Round 1: a left out, E_NORM: 5 > 4", round=1, site="a", code="E_NORM", reason="5 > 4"
    )
    told.tell("rejected", "Round 1: b left out, E_AUDIT", round=1, site="b", code="E_AUDIT")
    told.tell("failed", "E_QUORUM  too few\n          found: 1\n", code="E_QUORUM")
    told.tell("round", round=1, missing=["c"], rejected={}, status="committed")
    told.tell("round", round=2, missing=[], rejected={}, status="committed")
    told.tell("round", round=3, missing=[], rejected={}, status="abandoned")
    told.tell("local", site="a", code="E_DATA")
    told.tell("finished")
    entries = feed_after(told.run.view(), 0)
    assert [e.tone for e in entries] == [
        "warning", "warning", "bad", "warning", "plain", "bad", "warning", "good",
    ]  # fmt: skip
    assert entries[0].text == "Round 1: a left out, E_NORM: 5 > 4"
    assert entries[1].text == f"Round 1: b left out, E_AUDIT: {REASONS['E_AUDIT']}", "a ledger of schema 1"
    assert entries[2].text == "E_QUORUM  too few; found: 1"


def test_a_real_rejection_gives_its_reason(real: Path) -> None:
    run = Runs.of_folder(real).list()[0]
    (entry,) = (e for e in feed(run.view()) if e.kind == "rejected")
    assert entry.tone == "warning" and entry.site == "east" and entry.round == 2
    assert "the update is larger than strategy.max_update_norm (found" in entry.text
    run.close()


def codes() -> list[str]:
    kinds = [kind for kind in vars(common.errors).values() if isinstance(kind, type)]
    return sorted({kind.code for kind in kinds if issubclass(kind, FedcxrError)})


@pytest.mark.parametrize("code", codes())
def test_every_code_has_its_sentence(code: str) -> None:
    assert reason_of(code) == REASONS[code]
    assert not REASONS[code].endswith(".") and REASONS[code][0].islower()


def test_no_sentence_is_of_a_code_that_is_not() -> None:
    assert REASONS.keys() - {*codes()} == {"E_DEADLINE"}, "which is no error of ours but silence"
    assert len(codes()) > 25


def test_flowers_own_errors_have_theirs() -> None:
    from flwr.common.constant import ErrorCode

    numbers = [value for name, value in vars(ErrorCode).items() if isinstance(value, int)]
    assert len(numbers) > 5
    unknown = reason_of(f"{NODE_ERROR}999")
    assert all(reason_of(f"{NODE_ERROR}{number}") != unknown for number in numbers)
