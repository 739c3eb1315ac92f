"""A site with Flower's own client, and answers that a test may forge."""

from __future__ import annotations

import base64
import datetime
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

if TYPE_CHECKING:
    from tests.server.centre.gateway.centre_process import CentreProcess


@dataclass
class Site:
    """A site with keys; its requests are made by Flower's client unless a test forges them."""

    centre: CentreProcess
    name: str
    private: ec.EllipticCurvePrivateKey
    key: bytes
    node_id: int = 0

    def wait_for_node(self) -> None:
        ends = time.monotonic() + 10
        while time.monotonic() < ends:
            with self.centre.registry() as registry:
                self.node_id = registry.site(self.name).node_id or 0
            if self.node_id and self.post("pull-messages", PullMessagesRequest(node=self.node)).is_success:
                return
            time.sleep(0.05)
        raise AssertionError(self.centre.log.read_text())

    @property
    def node(self) -> Node:
        return Node(node_id=self.node_id)

    def client(self) -> FleetHttpClient:
        return FleetHttpClient.from_server_address(
            self.centre.public,
            False,
            self.centre.ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(self.private, self.private.public_key()),
            ],
        )

    def headers(self, age: float = 0.0, stamp: str = "") -> dict[str, str]:
        """Flower's three headers, signed ``age`` seconds ago."""
        when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
        stamp = stamp or when.isoformat()
        return {
            "flwr-public-key": base64.b64encode(self.key).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(sign_message(self.private, stamp.encode())).decode(),
        }

    def post(self, route: str, message: Any, **headers: str) -> httpx.Response:
        """Send any message to a Fleet route, with this site's credential."""
        signed = self.headers() | headers
        return self.centre.post(
            self.centre.public, f"/v1/fleet/{route}", message.SerializeToString(), **signed
        )

    def activate(self) -> int:
        with self.client() as client:
            request = ActivateNodeRequest(public_key=self.key, heartbeat_interval=30)
            return int(client.ActivateNode(request).node_id)

    def deactivate(self) -> None:
        with self.client() as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))

    def heartbeat(self) -> bool:
        with self.client() as client:
            request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=30)
            return bool(client.SendNodeHeartbeat(request).success)

    def pull(self) -> tuple[Message, ObjectTree] | None:
        """Ask for an instruction, without its objects."""
        with self.client() as client:
            found: PullMessagesResponse = client.PullMessages(PullMessagesRequest(node=self.node))
        if not found.messages_list:
            return None
        return message_from_proto(found.messages_list[0]), found.message_object_trees[0]

    def pull_object(self, run: int, object_id: str) -> httpx.Response:
        return self.post("pull-object", PullObjectRequest(node=self.node, run_id=run, object_id=object_id))

    def confirm(self, run: int, object_id: str) -> httpx.Response:
        request = ConfirmMessageReceivedRequest(node=self.node, run_id=run, message_object_id=object_id)
        return self.post("confirm-message-received", request)

    def answer(self, instruction: Message, number: float = 1.0) -> Answer:
        """Write an answer to an instruction; nothing is sent yet."""
        content = RecordDict({"update": ArrayRecord([np.full(4, number, np.float32)])})
        reply = Message(content, reply_to=instruction)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {key: value.deflate() for key, value in get_all_nested_objects(reply).items()}
        proto = message_to_proto(reply)
        proto.content.Clear()
        return Answer(self, proto, get_object_tree(reply), objects)


@dataclass
class Answer:
    """An answer that a test may change before it is sent."""

    site: Site
    proto: Any
    tree: ObjectTree
    objects: dict[str, bytes]
    session: str = ""

    def push(self, sender: Site | None = None) -> httpx.Response:
        sender = sender or self.site
        request = PushMessagesRequest(
            node=sender.node,
            messages_list=[self.proto],
            message_object_trees=[self.tree],
            clientapp_runtime_list=[0.1],
        )
        response = sender.post("push-messages", request)
        if response.status_code == 200:
            self.session = PushMessagesResponse.FromString(response.content).session_id
        return response

    def parts(self) -> list[str]:
        """Object ids, the message itself last."""
        return sorted(self.objects, key=lambda name: name == self.proto.metadata.message_id)

    def push_part(self, object_id: str, sender: Site | None = None, **change: Any) -> httpx.Response:
        sender = sender or self.site
        fields = {
            "node": sender.node,
            "run_id": self.proto.metadata.run_id,
            "session_id": self.session,
            "object_id": object_id,
            "object_content": self.objects.get(object_id, b""),
        }
        return sender.post("push-object", PushObjectRequest(**(fields | change)))

    def send(self) -> None:
        """Announce it and send every part."""
        assert self.push().status_code == 200
        for part in self.parts():
            assert self.push_part(part).status_code == 200
