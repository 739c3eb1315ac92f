"""The line to the centre: what may be sent on it, and how much was.

The last lock before the network. Whatever Flower's code or ours would send, only the routes below
are open, and a message or object leaves only if it was released, bytes and all, after the egress
gate had passed it and the audit had it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.node.standing import Standing
from common.errors import EgressError

OPEN = frozenset(
    {
        "ActivateNode",
        "ConfirmMessageReceived",
        "DeactivateNode",
        "GetFab",
        "GetRun",
        "PullMessages",
        "PullObject",
        "PushMessages",
        "PushObject",
        "SendNodeHeartbeat",
    }
)
"""Methods of Flower's Fleet service that a site uses."""
EVERY = 60.0
"""Seconds between two lines of the audit about traffic, where answers or objects were sent."""
EVERY_IDLE = 600.0
"""Seconds between two such lines where the site only asked for work."""
_IDLE = frozenset({"PullMessages", "SendNodeHeartbeat"})


class Released:
    """What may leave: messages by their bytes, objects by theirs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: set[bytes] = set()
        self._objects: set[str] = set()

    def release(self, message: MessageProto, tree: ObjectTree) -> None:
        """Allow one message and its objects, until `withdraw`."""
        with self._lock:
            self._messages.add(_bytes(message, tree))
            self._objects.update(part.object_id for part in iterate_object_tree(tree))

    def withdraw(self) -> None:
        """Allow nothing any more."""
        with self._lock:
            self._messages.clear()
            self._objects.clear()

    def check(self, request: object) -> None:
        """Look at what is about to be sent.

        Raises:
            EgressError: if it was not released.
        """
        with self._lock:
            if isinstance(request, PushMessagesRequest):
                messages, trees = request.messages_list, request.message_object_trees
                pairs = zip(messages, trees, strict=False)
                if len(messages) != len(trees) or not all(_bytes(*pair) in self._messages for pair in pairs):
                    raise EgressError("a message was about to leave that nobody had released")
                if any(request.clientapp_runtime_list):
                    raise EgressError("a duration was about to leave that nobody had released")
            if isinstance(request, PushObjectRequest):
                own = hashlib.sha256(request.object_content).hexdigest()
                if own != request.object_id or own not in self._objects:
                    raise EgressError("an object was about to leave that nobody had released")


class Traffic:
    """Requests and bytes that left, by route."""

    def __init__(self, write: Callable[..., None]) -> None:
        """Take what writes a line of the audit."""
        self._write = write
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._since = time.time()

    def count(self, route: str, size: int) -> None:
        """Count one request before it leaves."""
        with self._lock:
            counted = self._counts.setdefault(route, [0, 0])
            counted[0] += 1
            counted[1] += size

    def note(self, now: bool = False) -> None:
        """Write the counts to the audit when they are due, or now, and begin anew."""
        with self._lock:
            every = EVERY if set(self._counts) - _IDLE else EVERY_IDLE
            if not self._counts or not (now or time.time() - self._since >= every):
                return
            counts, self._counts = self._counts, {}
            since, self._since = self._since, time.time()
            routes = {name: {"requests": n, "bytes": size} for name, (n, size) in sorted(counts.items())}
            self._write("traffic", since=round(since, 3), until=round(self._since, 3), routes=routes)


class Lock:
    """An interceptor of Flower's HTTP client: refuses, counts, and notices what becomes of the line."""

    def __init__(self, released: Released, traffic: Traffic, standing: Standing) -> None:
        self._released = released
        self._traffic = traffic
        self._standing = standing

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Let one request through, or not.

        Raises:
            EgressError: if it may not leave.
        """
        method = context.rpc_method.rpartition("/")[2]
        if method not in OPEN:
            raise EgressError("a route was about to be used that is not open", found=method[:40])
        content = context.request.content
        if content != context.message.SerializeToString(deterministic=True):
            raise EgressError("a request differs from what was checked")
        self._released.check(context.message)
        self._traffic.count(method, len(content))
        try:
            response = call_next(context)
        except httpx.TransportError as error:
            self._standing.lost(error)
            raise
        self._standing.heard(response.status_code, method)
        if method == "SendNodeHeartbeat" and response.is_success:
            beat = SendNodeHeartbeatResponse.FromString(response.content)
            if not beat.success and self._standing.state.connected:
                self._standing.unknown()
        return response


class FleetClient(FleetHttpClient):
    """Flower's client behind our lock, which takes up again what a dead process of this site left open."""

    lock: Lock
    standing: Standing

    @classmethod
    def behind(cls, lock: Lock, standing: Standing) -> type[FleetClient]:
        """Return a class of clients behind a lock, to stand in for Flower's."""
        return type("FleetClient", (cls,), {"lock": lock, "standing": standing})

    @classmethod
    def from_server_address(
        cls,
        server_address: str,
        insecure: bool,
        root_certificates: bytes | str | None,
        interceptors: Sequence[Any],
        **also: Any,
    ) -> Self:
        """Build the client as Flower does; our lock is the last before the network."""
        every = [*interceptors, cls.lock]
        client = super().from_server_address(server_address, insecure, root_certificates, every, **also)
        client._client.follow_redirects = False
        return client

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802
        """Activate the node; a connection that this site's dead process left open is taken up again.

        Flower would refuse the node until it takes the dead one for gone, about a minute later, and
        would call it unavailable, and its answer lost, had it closed the old connection first.
        """
        left_open = self.standing.left_open()
        if left_open is not None and self._lives(left_open, request.heartbeat_interval):
            self.standing.connected(left_open)
            return ActivateNodeResponse(node_id=left_open)
        try:
            response = super().ActivateNode(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.PRECONDITION_FAILED:
                self.standing.refused_entry()
            raise
        self.standing.connected(response.node_id)
        return response

    def _lives(self, node: int, interval: float) -> bool:
        try:
            beat = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=interval)
            return self.SendNodeHeartbeat(beat).success
        except httpx.HTTPStatusError:
            return False

    def DeactivateNode(self, request: DeactivateNodeRequest) -> DeactivateNodeResponse:  # noqa: N802
        """Deactivate the node."""
        response = super().DeactivateNode(request)
        self.standing.closed()
        return response


def _bytes(message: MessageProto, tree: ObjectTree) -> bytes:
    both = PushMessagesRequest(messages_list=[message], message_object_trees=[tree])
    return hashlib.sha256(both.SerializeToString(deterministic=True)).digest()
