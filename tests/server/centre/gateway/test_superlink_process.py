"""The centre's process: it starts, stops, dies and goes on where it was."""

from __future__ import annotations

import signal
import socket
import sqlite3
import ssl
import time

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PushObjectResponse

from server.centre.provision import renew_server

pytestmark = pytest.mark.e2e


def test_a_killed_centre_goes_on_where_it_was(own_centre, start_run):
    centre = own_centre()
    north, south = centre.admit("north"), centre.admit("south")
    run = start_run(centre)
    north.activate(), south.activate()
    asked, late = run.ask(north), run.ask(south, group="7", ttl=3)
    answer, overdue = north.answer(north.pull()[0]), south.answer(south.pull()[0])
    assert answer.push().status_code == 200
    *parts, root = answer.parts()
    assert answer.push_part(parts[0]).status_code == 200
    with centre.registry() as registry:
        registry.revoke("south")
        registry.invite("east")
    centre.stop(signal.SIGKILL)
    # As if it had been dead for long: its task and nodes are not to blame.
    with sqlite3.connect(centre.folder.database) as database:
        database.execute("UPDATE task SET active_until = '2020-01-01 00:00:00.000000'")
        database.execute("UPDATE node SET online_until = 1")
    database.close()
    centre.start()
    assert north.node_id in run.grid.get_node_ids()
    # Half an upload goes on in its session; what it was asked is still its own.
    assert north.pull() is None
    assert PushObjectResponse.FromString(answer.push_part(parts[0]).content).stored
    for part in (*parts[1:], root):
        assert answer.push_part(part).status_code == 200
    assert run.collect(asked)
    assert answer.push().status_code == 200
    # A site revoked just before stays out.
    assert overdue.push().status_code == 401
    assert run.collect(late)[0].has_error()
    assert centre.stop(signal.SIGINT) == 0
    assert "Traceback" not in centre.log.read_text()


@pytest.mark.slow
def test_a_lost_database_of_flower_gives_sites_new_nodes(own_centre):
    centre = own_centre()
    north = centre.admit("north")
    before = north.node_id
    assert centre.stop() == 0
    for file in centre.folder.root.glob("superlink.sqlite*"):
        file.unlink()
    centre.start()
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        with centre.registry() as registry:
            north.node_id = registry.site("north").node_id
        if north.node_id != before:
            break
        time.sleep(0.1)
    assert north.node_id not in (None, before)
    time.sleep(0.5)
    assert north.activate() == north.node_id


def test_a_new_certificate_is_used_without_a_restart(centre):
    before = _certificate(centre)
    renew_server(centre.folder)
    ends = time.monotonic() + 5
    while time.monotonic() < ends and _certificate(centre) == before:
        time.sleep(0.2)
    assert _certificate(centre) != before


def _certificate(centre) -> bytes:
    host, port = centre.public.split(":")
    return ssl.get_server_certificate((host, int(port))).encode()


@pytest.mark.slow
def test_a_stop_does_not_wait_for_idle_callers(own_centre):
    centre = own_centre()
    north = centre.admit("north")
    held = [centre.connect(), centre.connect(tls=False)]
    client = north.client()
    client.PullMessages(PullMessagesRequest(node=north.node))
    began = time.monotonic()
    assert centre.stop() == 0
    assert time.monotonic() - began < 9
    client.close()
    for connection in held:
        connection.close()


@pytest.mark.slow
def test_what_it_cannot_start_with_is_said(own_centre):
    centre = own_centre(start=False)
    host, port = centre.public.split(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        assert _start_in_vain(centre) == 8
    assert f"E_DEPLOYMENT  cannot listen on {host}:{port}" in centre.log.read_text()
    centre.folder.key("admin.token").write_text("\n")
    assert _start_in_vain(centre) == 8
    assert "E_CREDENTIAL  keys/admin.token is missing or empty" in centre.log.read_text()
    assert "Traceback" not in centre.log.read_text()


def _start_in_vain(centre) -> int:
    with pytest.raises(AssertionError):
        centre.start()
    return int(centre.process.wait(5))


def test_both_listeners_speak_tls_that_the_ca_vouches_for(centre):
    for face in (centre.public, centre.admin):
        assert httpx.get(f"https://{face}/health", verify=centre.tls()).text == "ok"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://{face}/health")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_centre_that_stood_still_takes_nobody_for_dead(own_centre, start_run):
    """Flower's limit is a minute; the ServerApp's next request comes the moment the centre wakes."""
    centre = own_centre()
    north, run = centre.admit("north"), start_run(centre)
    north.activate()
    asked = run.ask(north)
    answer = north.answer(north.pull()[0])
    centre.process.send_signal(signal.SIGSTOP)
    time.sleep(75)
    centre.process.send_signal(signal.SIGCONT)
    assert run.collect(asked) == []
    answer.send()
    assert not run.collect(asked)[0].has_error()
    assert north.node_id in run.grid.get_node_ids()
    assert "the centre stood still for 7" in centre.log.read_text()
