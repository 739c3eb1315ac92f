"""Updates kept until their round is committed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from client.node import answers
from client.node.answers import KeptAnswers
from common.protocol import Answer, Instruction

ASKED = Instruction("train", "p" * 64, "c" * 64, "b" * 64, 3, adapter=np.ones(4, np.float32), sequence=5)
UPDATE = Answer("north", update=np.arange(4, dtype=np.float16), metrics={"num-examples": 7, "a": [0.5, 1.0]})


@pytest.fixture
def kept(tmp_path: Path) -> KeptAnswers:
    found = KeptAnswers(tmp_path)
    found.keep(ASKED, UPDATE)
    return found


def test_the_same_question_has_the_same_answer(kept: KeptAnswers) -> None:
    again = dataclasses.replace(ASKED, run="9", sequence=77, committed=2, signature="x", site="north")
    found = KeptAnswers(kept.folder).find(again)
    assert found is not None and found.metrics == UPDATE.metrics
    assert found.update is not None and found.update.dtype == np.float16
    np.testing.assert_array_equal(found.update, UPDATE.update)


@pytest.mark.parametrize(
    "change",
    [
        {"round": 4},
        {"plan_digest": "q" * 64},
        {"code_digest": "q" * 64},
        {"base_digest": "q" * 64},
        {"adapter": np.zeros(4, np.float32)},
        {"residual": {"a.left": np.zeros((2, 2), np.float32)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_has_none(kept: KeptAnswers, change: dict[str, object]) -> None:
    assert kept.find(dataclasses.replace(ASKED, **change)) is None


def test_a_committed_round_is_forgotten_and_only_it(kept: KeptAnswers) -> None:
    kept.keep(dataclasses.replace(ASKED, round=4), UPDATE)
    kept.keep(dataclasses.replace(ASKED, plan_digest="q" * 64), UPDATE)
    assert kept.forget("p" * 64, 2) == 0
    assert kept.forget("p" * 64, 3) == 1
    assert kept.find(ASKED) is None
    assert sorted((plan[0], number) for plan, number, _ in kept.waiting()) == [("p", 4), ("q", 3)]


def test_only_finished_updates_are_kept(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path)
    kept.keep(ASKED, Answer("north", code="E_DATA"))
    kept.keep(dataclasses.replace(ASKED, stage="evaluate"), UPDATE)
    assert kept.waiting() == []


def test_a_damaged_file_is_as_none(kept: KeptAnswers) -> None:
    (file,) = kept.folder.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", whole.replace(b'"question"', b'"quastion"')):
        file.write_bytes(damaged)
        assert kept.find(ASKED) is None
        assert not file.exists()


def test_what_is_kept_is_bounded(kept: KeptAnswers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_FILES", 3)
    for number in range(4, 9):
        kept.keep(dataclasses.replace(ASKED, round=number), UPDATE)
    assert [number for _, number, _ in kept.waiting()] == [6, 7, 8]
    monkeypatch.setattr(answers, "MAX_BYTES", 1)
    kept.keep(dataclasses.replace(ASKED, round=9), UPDATE)
    assert [number for _, number, _ in kept.waiting()] == [9]


def test_a_disk_that_takes_nothing_costs_the_keeping_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    KeptAnswers(blocked / "updates").keep(ASKED, UPDATE)
