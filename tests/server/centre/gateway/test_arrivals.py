"""The centre's line against a real SuperLink: one broken upload holds up nobody, nothing counts twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from common.errors import RunError
from common.protocol import Answer as OurAnswer
from common.protocol import Instruction
from common.wire import answer_to_records
from server.centre import arrivals
from server.centre.control import reach_control
from server.centre.line import CentreLine
from server.exchange import Reply, Talk, ask
from server.ledger import Ledger

TRAIN = Instruction("train", "p", "c", "b", round=1, adapter=np.ones(10, np.float32))


@pytest.fixture
def line(centre: Any, start_run: Callable[..., Any], tmp_path: Path) -> Any:
    """A line as a ServerApp has it, over HTTP and TLS."""
    run = start_run(centre)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.number, 1, 1
    ledger = Ledger(tmp_path / "ledger.sqlite")
    made = CentreLine(run.grid, ledger, centre.registry(), Ed25519PrivateKey.generate(), run.number)
    yield made
    ledger.close()


def connect(centre: Any, name: str) -> Any:
    site = centre.admit(name)
    site.activate()
    return site


def reply(site: Any, value: float = 1.0, change: Callable[[Any], None] = lambda answer: None) -> Any:
    """Take the instruction that waits for a site and write its answer; nothing is sent yet."""
    end = time.monotonic() + 10
    while (found := site.pull()) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    instruction, _ = found
    content = answer_to_records(OurAnswer(site.name, update=np.full(10, value, np.float32)))
    message = Message(content, reply_to=instruction)
    message.metadata.__dict__["_message_id"] = message.object_id
    proto = message_to_proto(message)
    proto.content.Clear()
    made = type(site.answer(instruction))(
        site,
        proto,
        get_object_tree(message),
        {key: part.deflate() for key, part in get_all_nested_objects(message).items()},
    )
    change(made)
    return made


class Updates(dict[int, Any]):
    """Node -> the update it sent, as whoever listens gets it."""

    def take(self, reply: Reply) -> None:
        if reply.answer is not None:
            self[reply.node] = reply.answer.update


def listen_until(talk: Talk, node: int, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while node not in talk.replies:
        assert time.monotonic() < end, "no answer"
        talk.listen()
        time.sleep(0.05)


def test_an_answer_arrives_with_its_numbers(centre: Any, line: Any) -> None:
    site = connect(centre, "arrives")
    updates = Updates()
    talk = Talk(line, TRAIN, 30, updates.take)
    talk.ask(site.node_id)
    reply(site, 0.25).send()
    listen_until(talk, site.node_id)
    assert np.array_equal(updates[site.node_id], np.full(10, 0.25, np.float32))
    answer = talk.replies[site.node_id].answer
    assert answer.site == "arrives" and answer.update is None, "a round keeps no update twice"
    assert talk.replies[site.node_id].up > 40


def test_an_upload_that_hangs_holds_up_nobody(centre: Any, line: Any) -> None:
    """Flower's own grid would wait here until the upload's session is over, three minutes later."""
    slow, quick = connect(centre, "hangs"), connect(centre, "quick")
    updates = Updates()
    talk = Talk(line, TRAIN, 60, updates.take)
    for site in (slow, quick):
        talk.ask(site.node_id)
    half = reply(slow, 0.5)
    assert half.push().status_code == 200
    first, *rest = half.parts()
    assert half.push_part(first).status_code == 200
    talk.listen()
    began = time.monotonic()
    reply(quick, 0.75).send()
    listen_until(talk, quick.node_id)
    assert time.monotonic() - began < 5
    assert slow.node_id not in talk.replies
    for part in rest:
        assert half.push_part(part).status_code == 200
    listen_until(talk, slow.node_id)
    assert updates[slow.node_id][0] == 0.5


def test_an_upload_that_never_ends_is_asked_for_again(
    centre: Any, line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "STALLED_AFTER", 0.5)
    site, lost = connect(centre, "stalls"), []
    updates = Updates()
    talk = Talk(line, TRAIN, 60, updates.take, on_lost=lambda node, code: lost.append(code))
    talk.ask(site.node_id)
    half = reply(site, 0.5)
    assert half.push().status_code == 200
    end = time.monotonic() + 10
    while not lost:
        assert time.monotonic() < end
        talk.listen()
        time.sleep(0.05)
    assert lost == ["E_NODE_3"]
    time.sleep(1.1)
    talk.listen()
    reply(site, 0.6).send()
    listen_until(talk, site.node_id)
    assert updates[site.node_id][0] == np.float32(0.6)
    assert len(talk.replies) == 1


def test_the_deadline_holds_while_an_upload_hangs(centre: Any, line: Any) -> None:
    site = connect(centre, "late")
    talk = Talk(line, TRAIN, 2.0)
    talk.ask(site.node_id)
    assert reply(site).push().status_code == 200
    began = time.monotonic()
    while talk.waiting and not talk.over:
        talk.listen()
        talk.pause()
    assert talk.finish().missing == (site.node_id,)
    assert time.monotonic() - began < 4


def test_a_superlink_killed_in_between_is_asked_again_when_it_is_back(
    own_centre: Callable[..., Any], start_run: Callable[..., Any], tmp_path: Path
) -> None:
    centre = own_centre()
    site, run = connect(centre, "survivor"), start_run(centre)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.number, 1, 1
    ledger = Ledger(tmp_path / "ledger.sqlite")
    line = CentreLine(run.grid, ledger, centre.registry(), Ed25519PrivateKey.generate(), run.number)
    run.grid._retry_invoker.max_time = 0.2
    talk = Talk(line, TRAIN, 60)
    talk.ask(site.node_id)
    centre.process.kill()
    centre.process.wait()
    talk.listen()
    assert line.silent() > 0
    centre.start()
    reply(site, 0.5).send()
    listen_until(talk, site.node_id)
    assert line.silent() == 0 and len(talk.replies) == 1
    ledger.close()


def test_a_run_that_is_stopped_ends_clearly(centre: Any, line: Any) -> None:
    site = connect(centre, "stopped")
    with reach_control(centre.folder) as control:
        number = line.grid.run.run_id
        assert not control.run(number).over
        control.stop_run(number)
        control.stop_run(number)
        assert control.run(number).outcome == "stopped"
    with pytest.raises(RunError, match="ended this run"):
        ask(line, [site.node_id], TRAIN, 30)
