"""The last lock before the network, with Flower's client and a server that counts what arrives."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.client import ProtobufRequestContext

from client.node.fleet import FleetClient, Lock, Released, Traffic
from client.node.standing import REVOKED, Standing, read_state
from client.place import SiteFolder
from common.errors import EgressError

CONTENT = b"an update"
OBJECT = hashlib.sha256(CONTENT).hexdigest()
TREE = ObjectTree(object_id=OBJECT)
MESSAGE = MessageProto(metadata=Metadata(message_id=OBJECT, run_id=7))


class Centre:
    """Takes every request and remembers its route and body."""

    def __init__(self) -> None:
        self.status = 200
        self.knows = True
        self.came: list[tuple[str, bytes]] = []
        centre = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                centre.came.append((self.path.rpartition("/")[2], body))
                reply = b""
                if self.path.endswith("activate-node") and "de" not in self.path.rpartition("/")[2][:2]:
                    reply = ActivateNodeResponse(node_id=5).SerializeToString()
                elif self.path.endswith("heartbeat"):
                    reply = SendNodeHeartbeatResponse(success=centre.knows).SerializeToString()
                self.send_response(centre.status)
                if centre.status == 307:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def routes(self) -> list[str]:
        return [route for route, _ in self.came]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Line:
    def __init__(self, address: str, root: Path) -> None:
        self.address = address
        self.folder = SiteFolder.of(root)
        self.said: list[str] = []
        self.lines: list[dict[str, Any]] = []
        self.released = Released()
        self.traffic = Traffic(lambda kind, **facts: self.lines.append({"kind": kind, **facts}))
        self.start()

    def start(self) -> None:
        self.standing = Standing(self.folder, "hub", self.said.append)
        self.lock = Lock(self.released, self.traffic, self.standing)
        client = FleetClient.behind(self.lock, self.standing)
        self.client = client.from_server_address(self.address, True, None, interceptors=[])

    def activate(self) -> None:
        self.client.ActivateNode(ActivateNodeRequest(public_key=b"k", heartbeat_interval=30))


@pytest.fixture
def centre() -> Iterator[Centre]:
    running = Centre()
    yield running
    running.stop()


@pytest.fixture
def line(centre: Centre, tmp_path: Path) -> Iterator[Line]:
    (tmp_path / "site.toml").write_text("")
    made = Line(centre.address, tmp_path)
    yield made
    made.client.close()


def push(content: bytes = CONTENT, object_id: str = OBJECT) -> PushObjectRequest:
    return PushObjectRequest(node=Node(node_id=5), run_id=7, object_id=object_id, object_content=content)


def push_message(
    message: MessageProto = MESSAGE, trees: tuple[ObjectTree, ...] = (TREE,), **also: Any
) -> PushMessagesRequest:
    return PushMessagesRequest(
        node=Node(node_id=5), messages_list=[message], message_object_trees=trees, **also
    )


def test_what_was_released_leaves_and_every_byte_is_counted(line: Line, centre: Centre) -> None:
    line.activate()
    line.client.PullMessages(PullMessagesRequest(node=Node(node_id=5)))
    line.client.PullMessages(PullMessagesRequest(node=Node(node_id=5)))
    line.released.release(MESSAGE, TREE)
    line.client.PushMessages(push_message())
    line.client.PushObject(push())
    line.client.DeactivateNode(DeactivateNodeRequest(node_id=5))
    line.traffic.note(now=True)
    (counted,) = line.lines
    routes = {name: facts["requests"] for name, facts in counted["routes"].items()}
    assert routes == {
        "ActivateNode": 1, "DeactivateNode": 1, "PullMessages": 2, "PushMessages": 1, "PushObject": 1,
    }  # fmt: skip
    assert sum(facts["bytes"] for facts in counted["routes"].values()) == sum(
        len(body) for _, body in centre.came
    )
    line.traffic.note(now=True)
    assert len(line.lines) == 1


SMUGGLED = {
    "content": push(b"something else"),
    "object": push(b"something else", hashlib.sha256(b"something else").hexdigest()),
    "metadata": push_message(MessageProto(metadata=Metadata(message_id=OBJECT, run_id=7, group_id="Doe"))),
    "duration": push_message(clientapp_runtime_list=[1.5]),
    "no tree": push_message(trees=()),
    "another tree": push_message(trees=(ObjectTree(object_id="Doe"),)),
}


@pytest.mark.parametrize("smuggled", SMUGGLED)
def test_beside_what_was_released_nothing_leaves(line: Line, centre: Centre, smuggled: str) -> None:
    line.released.release(MESSAGE, TREE)
    request = SMUGGLED[smuggled]
    send = line.client.PushObject if isinstance(request, PushObjectRequest) else line.client.PushMessages
    with pytest.raises(EgressError, match="nobody had released"):
        send(request)
    assert centre.came == []


def test_nothing_leaves_unreleased(line: Line, centre: Centre) -> None:
    with pytest.raises(EgressError):
        line.client.PushObject(push())
    with pytest.raises(EgressError):
        line.client.PushMessages(push_message())
    assert centre.came == []


def test_what_is_withdrawn_does_not_leave_again(line: Line, centre: Centre) -> None:
    line.released.release(MESSAGE, TREE)
    line.released.withdraw()
    with pytest.raises(EgressError):
        line.client.PushObject(push())
    assert centre.came == []


def test_other_routes_are_closed(line: Line, centre: Centre) -> None:
    with pytest.raises(EgressError, match="not open") as refused:
        line.client.RegisterNode(RegisterNodeFleetRequest(public_key=b"k"))
    assert refused.value.found == "RegisterNode"
    assert centre.came == []


def test_what_is_sent_is_what_was_checked(line: Line) -> None:
    request = httpx.Request("POST", "http://x/v1/fleet/pull-messages", content=b"Doe^Jane")
    context = ProtobufRequestContext("/flwr.proto.Fleet/PullMessages", PullMessagesRequest(), request)
    with pytest.raises(EgressError, match="differs from what was checked"):
        line.lock.intercept(context, lambda _: pytest.fail("it left"))


def test_nothing_follows_the_centre_elsewhere(line: Line, centre: Centre) -> None:
    centre.status = 307
    with pytest.raises(httpx.HTTPStatusError):
        line.client.PullMessages(PullMessagesRequest())
    assert centre.routes == ["pull-messages"]


def test_a_connection_left_open_by_a_dead_process_is_taken_up_again(line: Line, centre: Centre) -> None:
    line.activate()
    line.client.close()
    line.start()
    line.activate()
    assert centre.routes == ["activate-node", "send-node-heartbeat"]
    assert read_state(line.folder).connected and read_state(line.folder).node == 5
    # One that the centre no longer knows is activated afresh, and so is one that was closed.
    line.client.close()
    line.start()
    centre.knows = False
    line.activate()
    assert centre.routes[2:] == ["send-node-heartbeat", "activate-node"]
    line.client.DeactivateNode(DeactivateNodeRequest(node_id=5))
    line.start()
    line.activate()
    assert centre.routes[4:] == ["deactivate-node", "activate-node"]


def test_the_state_of_the_line_is_said_once(line: Line, centre: Centre) -> None:
    line.activate()
    assert read_state(line.folder).connected and read_state(line.folder).node == 5
    request = SendNodeHeartbeatRequest(node=Node(node_id=5), heartbeat_interval=30)
    centre.stop()
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            line.client.PullMessages(PullMessagesRequest())
    assert not read_state(line.folder).connected
    assert line.said[0] == "connected to hub"
    assert len(line.said) == 2 and line.said[1].startswith("no connection to hub (")
    # Somebody listens again.
    again = ThreadingHTTPServer(centre.server.server_address, centre.server.RequestHandlerClass)
    centre.server, centre.thread = again, threading.Thread(target=again.serve_forever, args=(0.02,))
    centre.thread.start()
    line.client.PullMessages(PullMessagesRequest())
    assert line.said[2:] == ["connection to hub is back"]
    centre.status = 503
    for _ in range(2):
        with pytest.raises(httpx.HTTPStatusError):
            line.client.SendNodeHeartbeat(request)
    assert line.said[3:] == ["the centre asks to wait (503); this is tried again by itself"]
    centre.status = 500
    with pytest.raises(httpx.HTTPStatusError):
        line.client.SendNodeHeartbeat(request)
    assert line.said[4:] == ["the centre answered SendNodeHeartbeat with HTTP 500"]
    centre.status = 401
    for _ in range(2):
        with pytest.raises(httpx.HTTPStatusError):
            line.client.PullMessages(PullMessagesRequest())
    assert len(line.said) == 6 and "revoked" in line.said[5]
    assert line.standing.exit_code == REVOKED
    state = json.loads((line.folder.root / "node" / "state.json").read_text())
    assert "revoked" in state["problem"] and not state["connected"]
