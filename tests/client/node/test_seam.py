"""Everything that enters or leaves a site, through Flower's own loop and state."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from client.node import seam
from client.node.outbox import Outbox
from common.errors import AuditError, EgressError
from common.protocol import Answer
from common.wire import answer_to_records, instruction_from_records

PATIENT = "Doe^Jane^MRN-77"


def test_an_instruction_goes_in_and_its_answer_out(link, site, trained) -> None:
    asked = link.ask(link.instruction())
    assert site.pull() == link.run
    task = site.task()
    given = instruction_from_records(task.metadata.message_type, task.content)
    assert given.round == 1 and given.sequence == 1
    np.testing.assert_array_equal(given.adapter, np.arange(6))
    site.reply(trained, task)
    (answer,) = link.answers(asked)
    np.testing.assert_array_equal(answer.update, trained.update)
    assert dict(answer.metrics) == dict(trained.metrics)
    assert site.outbox.entries() == []
    assert [line["kind"] for line in site.audit()] == ["approved", "instruction", "answer"]
    assert site.said == [
        f"asked for train, round 1 (run {link.run})",
        f"answered train, round 1 (run {link.run}) ({site.audit('answer')[0]['bytes']:,} bytes)",
    ]
    assert site.pull() is None


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
def test_what_the_gate_refuses_makes_no_task(link, site, changes, code) -> None:
    asked = link.ask(link.instruction(**changes))
    assert site.pull() is None
    assert link.answers(asked) == [Answer("north", code=code)]
    assert list(site.state.get_tasks()) == []
    assert [(line["kind"], line["code"]) for line in site.audit("refused", "answer")] == [
        ("refused", code), ("answer", code),
    ]  # fmt: skip


def test_an_unsigned_and_a_foreign_message_are_refused(link, site) -> None:
    unsigned = link.ask(dataclasses.replace(link.instruction(), signature=""))
    foreign = link.put(RecordDict({"x": ConfigRecord({"y": 1})}), "train.round")
    assert site.pull() is None
    assert link.answers(unsigned)[0].code == "E_SIGNATURE"
    assert link.answers(foreign)[0].code == "E_SCHEMA"


def test_a_replay_is_refused(link, site, trained) -> None:
    link.ask(link.instruction())
    site.pull()
    site.reply(trained)
    again = link.ask(link.instruction(round=1))
    assert site.pull() is None
    assert link.answers(again)[0].code == "E_REPLAY"


def test_the_text_of_an_exception_stays_here(link, site) -> None:
    asked = link.ask(link.instruction())
    site.pull()
    site.reply(Error(code=7, reason=PATIENT))
    assert link.answers(asked) == []
    assert "the ClientApp crashed; its instruction is handed in once more" in site.said
    assert site.pull() == link.run
    site.reply(Error(code=8, reason=PATIENT))
    assert link.answers(asked) == [Answer("north", code="E_WORKER")]
    assert PATIENT.encode() not in b"".join(link.bodies)


@pytest.mark.parametrize("where", ["record", "metric", "code", "site", "metadata"])
def test_nothing_leaves_that_the_gate_has_not_passed(link, site, trained, where: str) -> None:
    asked = link.ask(link.instruction())
    assert site.pull() == link.run, (site.audit(), link.sent)
    content: Any = answer_to_records(trained)
    metadata = {}
    if where == "record":
        content["notes"] = ConfigRecord({"notes": PATIENT})
    elif where == "metric":
        content["metrics"][PATIENT] = 1
    elif where == "code":
        content["site"]["code"] = "E_DOE_JANE"
    elif where == "site":
        content["site"]["name"] = PATIENT
    else:
        metadata = {"group_id": PATIENT}
    site.reply(content, **metadata)
    sent = b"".join(link.bodies)
    assert PATIENT.encode() not in sent and b"DOE" not in sent
    (answer,) = link.answers(asked)
    assert answer.code == ("" if where == "metadata" else "E_EGRESS")
    assert (answer.update is None) == (where != "metadata")


def test_an_answer_to_nothing_that_was_asked_is_dropped(link, site, trained) -> None:
    link.ask(link.instruction())
    site.pull()
    site.outbox.entries()[0].drop()
    site.reply(trained)
    assert link.bodies == []


def test_objects_leave_with_their_answer_only(site) -> None:
    with pytest.raises(EgressError, match="by another way"):
        site.seam.push_object(1, "session", "a" * 64, b"anything")


def test_what_was_not_finished_goes_on_after_a_crash(link, site, trained) -> None:
    asked = link.ask(link.instruction())
    assert site.pull() == link.run
    site.start()
    assert site.pull() == link.run
    assert f"going on with train, round 1 (run {link.run}), which was not finished" in site.said
    site.reply(trained)
    assert link.answers(asked)[0].code == ""
    assert link.sent.count("confirm_message_received") == 1
    assert [line["resumed"] for line in site.audit("instruction")] == [False, True]


def test_an_instruction_half_pulled_is_pulled_to_the_end(link, site, monkeypatch) -> None:
    asked = link.ask(link.instruction())
    pull = site.seam.inner.pull_object

    def die(run: int, object_id: str) -> bytes:
        if link.sent.count("pull_object") == 2:
            raise KeyboardInterrupt
        return pull(run, object_id)

    object.__setattr__(site.seam.inner, "pull_object", die)
    monkeypatch.setattr(seam, "pull_objects", lambda ids, pull_one: {i: pull_one(i) for i in ids})
    with pytest.raises(KeyboardInterrupt):
        site.pull()
    site.start()
    assert site.outbox.find(asked).state == "arriving"
    assert site.pull() == link.run


@pytest.mark.parametrize("dies_at", ["send", "push_object"])
def test_an_answer_that_was_not_sent_is_sent_again_and_counted_once(link, site, trained, dies_at) -> None:
    asked = link.ask(link.instruction())
    site.pull()

    def die(*_: object) -> Any:
        raise KeyboardInterrupt

    object.__setattr__(site.seam.inner, dies_at, die)
    with pytest.raises(KeyboardInterrupt):
        site.reply(trained)
    first = site.outbox.find(asked).reply
    site.start()
    assert site.pull() is None
    assert link.answers(asked)[0].update is not None
    assert site.outbox.entries() == []
    assert len(site.audit("answer")) == 1
    assert first.messages_list[0].metadata.message_id == site.audit("answer")[0]["objects"][-1]


def test_an_answer_the_centre_cannot_store_yet_is_kept(link, site, trained) -> None:
    asked = link.ask(link.instruction())
    site.pull()
    push = site.seam.inner.push_object

    def full(*_: object) -> None:
        raise ObjectPushError("a" * 64, 1, "session")

    object.__setattr__(site.seam.inner, "push_object", full)
    site.reply(trained)
    assert site.outbox.find(asked).state == "audited"
    object.__setattr__(site.seam.inner, "push_object", push)
    assert site.pull() is None
    assert link.answers(asked)[0].code == ""


def test_nothing_leaves_without_the_audit(link, site, trained) -> None:
    asked = link.ask(link.instruction())
    site.pull()
    text = site.folder.audit.read_text()
    site.folder.audit.write_text("".join(text.splitlines(keepends=True)[:-1]))
    site.reply(trained)
    assert link.bodies == []
    with pytest.raises(AuditError):
        site.pull()
    site.folder.audit.write_text(text)
    site.start()
    site.pull()
    assert link.answers(asked)[0].code == ""


def test_an_approval_withdrawn_meanwhile_keeps_the_update_here(link, site, trained) -> None:
    asked = link.ask(link.instruction())
    site.pull()
    site.folder.policy.write_text(site.folder.policy.read_text() + "\n# changed\n")
    site.reply(trained)
    assert link.answers(asked) == [Answer("north", code="E_APPROVAL")]


def test_of_a_run_that_is_over_nothing_is_kept(link, site, trained) -> None:
    link.ask(link.instruction())
    site.pull()
    link.finish()
    site.reply(trained)
    assert site.outbox.entries() == []
    assert f"the centre no longer wants train, round 1 (run {link.run}): it is dropped" in site.said


def test_what_the_centre_no_longer_waits_for_is_dropped(link, site, trained) -> None:
    link.ask(link.instruction(), ttl=0.5)
    site.pull()
    site.start()
    time.sleep(0.6)
    assert site.pull() is None
    assert site.outbox.entries() == []
    assert any("too late" in line for line in site.said)


def test_a_full_disk_takes_no_instruction_from_the_centre(link, site, monkeypatch) -> None:
    asked = link.ask(link.instruction())
    monkeypatch.setattr(seam, "MIN_FREE", 1 << 62)
    assert site.pull() is None
    assert site.said == ["the disk is nearly full; no instruction is taken until there is room"]
    assert "pull_messages" not in link.sent
    monkeypatch.setattr(seam, "MIN_FREE", 0)
    assert site.pull() == link.run
    assert Outbox(site.folder.outbox).find(asked) is not None


def test_an_instruction_that_kills_this_process_again_and_again_is_given_up(link, site) -> None:
    asked = link.ask(link.instruction())
    for _ in range(seam.STARTS):
        assert site.pull() == link.run
        site.start()
    assert site.pull() is None
    assert link.answers(asked) == [Answer("north", code="E_WORKER")]
