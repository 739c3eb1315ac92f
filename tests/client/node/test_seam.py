"""Everything that enters or leaves a site, between Flower's state of a SuperLink and a worker."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from client.node import seam
from client.node.outbox import Outbox
from client.node.pace import LONGEST
from common.errors import AuditError
from common.protocol import Answer

PATIENT = "Doe^Jane^MRN-77"


def test_an_instruction_goes_in_and_its_answer_out(link, site, trained) -> None:
    asked = link.ask(link.instruction())
    site.go()
    (given,) = site.asked
    assert given.round == 1 and given.sequence == 1
    np.testing.assert_array_equal(given.adapter, np.arange(6))
    assert site.settings["rounds.quorum"] == 3 and 590 < site.patience <= 600
    (answer,) = link.answers(asked)
    np.testing.assert_array_equal(answer.update, trained.update)
    assert dict(answer.metrics) == dict(trained.metrics)
    assert site.outbox.entries() == []
    assert [line["kind"] for line in site.audit()] == ["approved", "instruction", "answer"]
    assert site.said == [
        f"asked for train, round 1 (run {link.run})",
        f"answered train, round 1 (run {link.run}) ({site.audit('answer')[0]['bytes']:,} bytes)",
    ]
    assert site.seam.turn() is False


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"site": "south"}, "E_REPLAY"),
        ({"run": "12"}, "E_REPLAY"),
        ({"base_digest": "c" * 64}, "E_DIGEST"),
        ({"plan_digest": "d" * 64}, "E_DIGEST"),
        ({"committed": 1}, "E_REPLAY"),
    ],
)
def test_what_the_gate_refuses_never_reaches_the_worker(link, site, changes, code) -> None:
    asked = link.ask(link.instruction(**changes))
    site.go()
    assert link.answers(asked) == [Answer("north", code=code)]
    assert site.asked == []
    assert [(line["kind"], line["code"]) for line in site.audit("refused", "answer")] == [
        ("refused", code), ("answer", code),
    ]  # fmt: skip
    assert site.said == [f"refused train, round 1 (run {link.run}) with {code}"]


def test_an_unsigned_and_a_foreign_message_are_refused(link, site) -> None:
    unsigned = link.ask(dataclasses.replace(link.instruction(), signature=""))
    foreign = link.put(RecordDict({"x": ConfigRecord({"y": 1})}), "train.round")
    site.go()
    assert link.answers(unsigned)[0].code == "E_SIGNATURE"
    assert link.answers(foreign)[0].code == "E_SCHEMA"
    assert site.asked == []


def test_a_replay_is_refused(link, site) -> None:
    link.ask(link.instruction())
    site.go()
    again = link.ask(link.instruction(round=1))
    site.go()
    assert link.answers(again)[0].code == "E_REPLAY"
    assert len(site.asked) == 1


@pytest.mark.parametrize("where", ["metric", "number", "code", "site", "update"])
def test_nothing_leaves_that_the_gate_has_not_passed(link, site, trained, where: str) -> None:
    asked = link.ask(link.instruction())
    changes: dict[str, Any] = {
        "metric": {"metrics": {**trained.metrics, PATIENT: 1}},
        "number": {"metrics": {**trained.metrics, "loss": float("nan")}},
        "code": {"code": "E_DOE_JANE"},
        "site": {"site": PATIENT},
        "update": {"update": np.full(7, 0.01, np.float32)},
    }[where]
    site.works = lambda instruction: dataclasses.replace(trained, **changes)
    site.go()
    sent = b"".join(link.bodies)
    assert PATIENT.encode() not in sent and b"DOE" not in sent
    (answer,) = link.answers(asked)
    assert answer == Answer("north", code="E_EGRESS")


def test_what_was_not_finished_goes_on_after_a_crash(link, site) -> None:
    asked = link.ask(link.instruction())
    site.dies_over()
    site.go()
    assert f"going on with train, round 1 (run {link.run}), which was not finished" in site.said
    assert link.answers(asked)[0].code == ""
    assert len(site.asked) == 2
    assert link.sent.count("confirm_message_received") == 1
    assert [line["resumed"] for line in site.audit("instruction")] == [False, True]


def test_an_instruction_half_pulled_is_pulled_to_the_end(link, site, monkeypatch) -> None:
    asked = link.ask(link.instruction())
    pull = site.seam.inner.pull_object
    pulled: list[str] = []

    def pull_two(run: int, object_id: str) -> bytes:
        if len(pulled) == 2:
            site.dies()
        pulled.append(object_id)
        return pull(run, object_id)

    object.__setattr__(site.seam.inner, "pull_object", pull_two)
    monkeypatch.setattr(seam, "for_each", lambda names, work: [work(name) for name in names])
    with pytest.raises(site.killed):
        site.go()
    site.start()
    entry = site.outbox.find(asked)
    assert entry.state == "arriving" and [entry.has(name) for name in pulled] == [True, True]
    site.go()
    assert link.answers(asked)[0].code == ""


def test_an_instruction_still_on_its_way_from_the_centre_holds_up_nobody(link, site) -> None:
    late = link.ask(link.instruction(sequence=2), complete=False)
    site.go()
    assert site.outbox.find(late).state == "arriving" and site.asked == []
    waiting = link.upload
    other = link.ask(link.instruction(sequence=1))
    site.go()
    assert link.answers(other)[0].code == ""
    for part in waiting:
        link.state.store_object(link.run, *part)
    site.go()
    assert link.answers(late)[0].code == "" and len(site.asked) == 2


@pytest.mark.parametrize("dies_at", ["send", "push_object"])
def test_an_answer_that_was_not_sent_is_sent_again_and_counted_once(link, site, dies_at) -> None:
    asked = link.ask(link.instruction())
    object.__setattr__(site.seam.inner, dies_at, site.dies)
    with pytest.raises(site.killed):
        site.go()
    first = site.outbox.find(asked).reply
    site.start()
    site.go()
    assert link.answers(asked)[0].update is not None
    assert site.outbox.entries() == []
    assert len(site.audit("answer")) == 1 and len(site.asked) == 1
    assert first.messages_list[0].metadata.message_id == site.audit("answer")[0]["objects"][-1]


def test_an_answer_the_centre_cannot_store_yet_is_kept(link, site) -> None:
    asked = link.ask(link.instruction())
    push = site.seam.inner.push_object

    def full(*_: object) -> None:
        raise ObjectPushError("a" * 64, 1, "session")

    object.__setattr__(site.seam.inner, "push_object", full)
    site.go()
    assert site.outbox.find(asked).state == "audited"
    assert site.seam.pace.wait() == LONGEST, "the centre is not asked at once to take it again"
    object.__setattr__(site.seam.inner, "push_object", push)
    site.go()
    assert link.answers(asked)[0].code == "" and len(site.asked) == 1


def test_nothing_leaves_without_the_audit(link, site) -> None:
    asked = link.ask(link.instruction())
    text = ""

    def lose_a_line(instruction: object) -> Answer:
        nonlocal text
        text = site.folder.audit.read_text()
        site.folder.audit.write_text("".join(text.splitlines(keepends=True)[:-1]))
        return trained_before(instruction)

    trained_before, site.works = site.works, lose_a_line
    for _ in range(2):
        with pytest.raises(AuditError):
            site.go()
        assert link.bodies == []
    site.folder.audit.write_text(text)
    site.start()
    site.go()
    assert link.answers(asked)[0].code == ""


def test_an_approval_withdrawn_meanwhile_keeps_the_update_here(link, site, trained) -> None:
    asked = link.ask(link.instruction())

    def change_policy(_: object) -> Answer:
        site.folder.policy.write_text(site.folder.policy.read_text() + "\n# changed\n")
        return trained

    site.works = change_policy
    site.go()
    assert link.answers(asked) == [Answer("north", code="E_APPROVAL")]


def test_of_a_run_that_is_over_nothing_is_kept(link, site, trained) -> None:
    link.ask(link.instruction())

    def end(_: object) -> Answer:
        link.finish()
        return trained

    site.works = end
    site.go()
    assert site.outbox.entries() == []
    assert f"the centre no longer wants train, round 1 (run {link.run}): it is dropped" in site.said


def test_what_the_centre_no_longer_waits_for_is_dropped(link, site) -> None:
    link.ask(link.instruction(), ttl=0.5)
    site.dies_over()
    time.sleep(0.6)
    site.go()
    assert site.outbox.entries() == []
    assert any("too late" in line for line in site.said)
    assert len(site.asked) == 1


def test_a_full_disk_takes_no_instruction_from_the_centre(link, site, monkeypatch) -> None:
    asked = link.ask(link.instruction())
    monkeypatch.setattr(seam, "MIN_FREE", 1 << 62)
    site.go()
    assert site.said == ["the disk is nearly full; no instruction is taken until there is room"]
    assert "pull_messages" not in link.sent
    monkeypatch.setattr(seam, "MIN_FREE", 0)
    site.dies_over()
    assert Outbox(site.folder.outbox).find(asked) is not None


def test_a_journal_that_cannot_be_written_loses_nothing_and_is_tried_again(link, site, monkeypatch) -> None:
    asked = link.ask(link.instruction())
    answer = seam.Entry.answer
    monkeypatch.setattr(seam.Entry, "answer", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    for _ in range(seam.STARTS + 1):
        site.seam.turn()
        assert site.seam.pace.wait() == LONGEST
    assert "the journal cannot be written: No space left; this is tried again" in site.said
    assert link.bodies == []
    monkeypatch.setattr(seam.Entry, "answer", answer)
    site.go()
    assert link.answers(asked)[0].code == ""


def test_an_instruction_that_kills_this_process_again_and_again_is_given_up(link, site) -> None:
    asked = link.ask(link.instruction())
    for _ in range(seam.STARTS):
        site.dies_over()
    site.go()
    assert link.answers(asked) == [Answer("north", code="E_WORKER")]
    assert len(site.asked) == seam.STARTS
