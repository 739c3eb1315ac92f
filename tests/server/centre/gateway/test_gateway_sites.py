"""A site does what it needs through the gateway, and nothing in another's name."""

from __future__ import annotations

import datetime
import sqlite3
import time

import httpx
import pytest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectResponse
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse

pytestmark = pytest.mark.e2e


def test_an_exchange_through_flowers_own_client(centre, start_run):
    north, run = centre.admit("exchange-north"), start_run(centre)
    assert north.activate() == north.node_id
    assert north.heartbeat()
    assert north.pull() is None
    asked = run.ask(north, group="3")
    message, tree = north.pull()
    assert message.metadata.message_id == asked
    with north.client() as client:
        found: GetRunResponse = client.GetRun(GetRunRequest(node=north.node, run_id=run.number))
        request = GetFabRequest(node=north.node, hash_str=found.run.fab_hash, run_id=run.number)
        assert client.GetFab(request).fab.content
    parts = [tree.object_id, *(child.object_id for child in tree.children)]
    for part in parts:
        pulled = north.pull_object(run.number, part)
        assert PullObjectResponse.FromString(pulled.content).object_content
    assert north.confirm(run.number, asked).status_code == 200
    north.answer(message, 2.5).send()
    (reply,) = run.collect(asked)
    assert reply.metadata.src_node_id == north.node_id
    assert reply.metadata.reply_to_message_id == asked
    assert reply.content["update"].to_numpy_ndarrays()[0][0] == 2.5
    north.deactivate()


def test_a_site_that_sends_its_answer_again_is_told_that_it_is_there(centre, start_run):
    north, run = centre.admit("again-north"), start_run(centre)
    north.activate()
    asked = run.ask(north)
    message, _ = north.pull()
    answer = north.answer(message)
    answer.send()
    assert answer.push().status_code == 200
    last = answer.parts()[-1]
    assert run.collect(asked)
    response = answer.push()
    assert response.status_code == 200
    assert not PushMessagesResponse.FromString(response.content).objects_to_push
    assert not centre.events(kind="late", site="again-north")
    other = north.answer(message, 9.0)
    assert other.push().status_code == 403
    assert last in answer.objects


def test_an_object_whose_receipt_was_lost_is_stored(centre, start_run):
    north, run = centre.admit("lost-north"), start_run(centre)
    north.activate()
    run.ask(north)
    message, _ = north.pull()
    answer = north.answer(message)
    assert answer.push().status_code == 200
    first = answer.parts()[0]
    for _ in range(2):
        response = answer.push_part(first)
        assert response.status_code == 200
        assert PushObjectResponse.FromString(response.content).stored


def test_an_instruction_whose_delivery_was_lost_comes_again(centre, start_run):
    north, run = centre.admit("redeliver-north"), start_run(centre)
    north.activate()
    asked = run.ask(north)
    assert north.pull()[0].metadata.message_id == asked
    assert north.pull() is None
    _sent_a_while_ago(centre, asked)
    found = north.pull()
    assert found is not None
    assert found[0].metadata.message_id == asked
    # Once confirmed it does not come a third time.
    north.confirm(run.number, asked)
    _sent_a_while_ago(centre, asked)
    assert north.pull() is None
    north.answer(found[0]).send()
    assert run.collect(asked)


def _sent_a_while_ago(centre, message):
    with sqlite3.connect(centre.folder.database) as database:
        before = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)).isoformat()
        database.execute("UPDATE message_ins SET delivered_at = ? WHERE message_id = ?", (before, message))
    database.close()


def test_another_site_can_neither_read_nor_answer_an_instruction(centre, start_run):
    north, south, run = centre.admit("bind-north"), centre.admit("bind-south"), start_run(centre)
    north.activate(), south.activate()
    asked = run.ask(north)
    run.ask(south, number=0.25)
    message, tree = north.pull()
    theirs, _ = south.pull()
    for part in (asked, tree.children[0].object_id):
        assert south.pull_object(run.number, part).status_code == 403
        assert south.confirm(run.number, part).status_code == 403
    answer = north.answer(message)
    # As itself, as the other, and in the other's name under its own.
    assert answer.push(sender=south).status_code == 403
    answer.proto.metadata.src_node_id = south.node_id
    assert answer.push(sender=south).status_code == 403
    own = south.answer(theirs)
    own.proto.metadata.reply_to_message_id = asked
    assert own.push().status_code == 403
    own.proto.metadata.reply_to_message_id = "ab" * 32
    assert own.push().status_code == 403
    own.proto.metadata.reply_to_message_id = ""
    assert own.push().status_code == 403
    own = south.answer(theirs)
    own.proto.metadata.dst_node_id = north.node_id
    assert own.push().status_code == 403
    # Nothing of it arrived: the real answers do.
    north.answer(message, 7.0).send()
    (reply,) = run.collect(asked)
    assert reply.content["update"].to_numpy_ndarrays()[0][0] == 7.0


def test_a_message_object_that_says_another_name_is_refused(centre, start_run):
    """Flower checks the announcement; its ServerApp believes the object."""
    north, south, run = centre.admit("forge-north"), centre.admit("forge-south"), start_run(centre)
    north.activate(), south.activate()
    asked_north = run.ask(north)
    run.ask(south)
    for_north, for_south = north.pull()[0], south.pull()[0]
    forged, plain = south.answer(for_north, 666.0), south.answer(for_south)
    # Announce the forged object under an honest envelope.
    plain.proto.metadata.message_id = forged.proto.metadata.message_id
    plain.tree, plain.objects = forged.tree, forged.objects
    assert plain.push().status_code == 200
    *parts, root = plain.parts()
    assert plain.push_part(root).status_code == 403
    for part in parts:
        assert plain.push_part(part).status_code == 200
    assert run.collect(asked_north) == []


def test_parts_are_bound_to_the_sender_and_to_what_was_announced(centre, start_run):
    north, south, run = centre.admit("part-north"), centre.admit("part-south"), start_run(centre)
    north.activate(), south.activate()
    run.ask(north)
    answer = north.answer(north.pull()[0], 3.25)
    assert answer.push().status_code == 200
    part = answer.parts()[0]
    assert answer.push_part(part, sender=south).status_code == 403
    assert answer.push_part(part, session_id="").status_code == 403
    assert answer.push_part(part, run_id=run.number + 1).status_code == 403
    assert answer.push_part(part, object_content=b"rubbish").status_code == 400
    assert answer.push_part(part).status_code == 200


def test_runs_are_for_sites_they_asked(centre, start_run):
    north, south, run = centre.admit("run-north"), centre.admit("run-south"), start_run(centre)
    north.activate(), south.activate()
    run.ask(north)
    assert north.post("get-run", GetRunRequest(node=north.node, run_id=run.number)).status_code == 200
    assert south.post("get-run", GetRunRequest(node=south.node, run_id=run.number)).status_code == 403
    request = GetFabRequest(node=south.node, hash_str="ab", run_id=run.number)
    assert south.post("get-fab", request).status_code == 403


@pytest.mark.parametrize("route", ["pull-messages", "send-node-heartbeat", "activate-node"])
def test_a_site_cannot_name_anothers_node(centre, route):
    north, south = centre.admit(f"name-{route}-a"), centre.admit(f"name-{route}-b")
    message = {
        "pull-messages": PullMessagesRequest(node=north.node),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=north.node, heartbeat_interval=30),
        "activate-node": ActivateNodeRequest(public_key=north.key, heartbeat_interval=30),
    }[route]
    response = south.post(route, message)
    assert response.status_code == 401
    assert response.json() == {"detail": "authentication failed"}


def test_a_late_answer_is_refused_and_said(centre, start_run):
    north, run = centre.admit("late-north"), start_run(centre)
    north.activate()
    asked = run.ask(north, group="4", ttl=1.5)
    answer = north.answer(north.pull()[0])
    time.sleep(1.6)
    response = answer.push()
    assert response.status_code == 403
    assert response.json() == {"detail": "the answer came after its deadline"}
    # Once more, when the ServerApp has looked and Flower has deleted the instruction.
    run.collect(asked)
    assert answer.push().status_code == 403
    (event,) = centre.events(kind="late", site="late-north")
    assert (event["run"], event["group"]) == (str(run.number), "4")
    assert "late-north's answer came after the deadline" in centre.log.read_text()


def test_times_that_are_off_and_signatures_that_were_used_are_refused(centre):
    north = centre.admit("clock-north")
    request = PullMessagesRequest(node=north.node)
    assert north.post("pull-messages", request, **north.headers(age=290)).status_code == 200
    for age in (400, -60):
        assert north.post("pull-messages", request, **north.headers(age=age)).status_code == 401
    assert len(centre.events(kind="clock", site="clock-north")) == 1
    assert "clock is 400 s behind" in centre.log.read_text()
    once = north.headers()
    assert north.post("pull-messages", request, **once).status_code == 200
    # Flower's client signs every attempt anew, so a site is asked to try again, not to stop.
    assert north.post("pull-messages", request, **once).status_code == 503
    naive = north.headers(stamp="2026-01-01T00:00:00")
    assert north.post("pull-messages", request, **naive).status_code == 401


@pytest.mark.slow
def test_a_silent_node_may_be_activated_anew_and_a_living_one_not(centre):
    north = centre.admit("restart-north")
    north.activate()
    assert north.heartbeat()
    with pytest.raises(httpx.HTTPStatusError) as caught:
        north.activate()
    assert caught.value.response.status_code == 412
    time.sleep(12.5)
    assert north.activate() == north.node_id


def test_a_revoked_site_is_shut_out_at_once(centre, start_run):
    north, south, run = centre.admit("revoke-north"), centre.admit("revoke-south"), start_run(centre)
    north.activate(), south.activate()
    asked = run.ask(north)
    answer = north.answer(north.pull()[0])
    with north.client() as open_connection:
        open_connection.PullMessages(PullMessagesRequest(node=north.node))
        with centre.registry() as registry:
            registry.revoke("revoke-north")
        time.sleep(0.4)
        # It is told so, or finds that the gateway has just closed the connection.
        with pytest.raises((httpx.HTTPStatusError, httpx.RemoteProtocolError)) as caught:
            open_connection.PullMessages(PullMessagesRequest(node=north.node))
    if isinstance(caught.value, httpx.HTTPStatusError):
        assert caught.value.response.status_code == 401
    request = PullMessagesRequest(node=north.node)
    assert north.post("pull-messages", request, **north.headers()).status_code == 401
    assert answer.push().status_code == 401
    time.sleep(1.2)
    assert centre.events(kind="revoked", site="revoke-north")
    (refused,) = run.collect(asked)
    assert refused.has_error()
    assert south.heartbeat()


def test_new_keys_replace_the_old_ones_at_once(centre):
    north = centre.admit("rekey-north")
    again = centre.register("rekey-north")
    again.wait_for_node()
    assert again.node_id != north.node_id
    assert north.post("pull-messages", PullMessagesRequest(node=north.node)).status_code == 401
    assert again.activate() == again.node_id
    assert centre.events(kind="replaced", site="rekey-north")
    assert not centre.events(kind="revoked", site="rekey-north")


def test_who_is_connected_and_when_it_was_heard_is_known(centre):
    north = centre.admit("heard-north")
    before = time.time()
    north.activate()
    time.sleep(1.5)
    assert centre.events(kind="connected", site="heard-north")
    north.deactivate()
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        with centre.registry() as registry:
            heard = registry.site("heard-north").heard_at
        if heard and centre.events(kind="disconnected", site="heard-north"):
            break
        time.sleep(0.2)
    assert heard is not None
    assert heard >= before - 1
    assert centre.events(kind="disconnected", site="heard-north")


def test_no_log_holds_a_header_or_a_body(centre, start_run):
    north, run = centre.admit("quiet-north"), start_run(centre)
    north.activate()
    run.ask(north)
    answer = north.answer(north.pull()[0], 4.25)
    answer.push()
    part = answer.parts()[0]
    answer.push_part(part, object_content=b"Smith^John 1950-01-01")
    centre.post(centre.public, "/v1/fleet/Smith^John", b"", authorization="Bearer Smith^John")
    written = centre.log.read_text() + (centre.folder.logs / "events.jsonl").read_text()
    signature = north.headers()["flwr-public-key"]
    for secret in ("Smith", signature, centre.token, run.task_token):
        assert secret not in written
