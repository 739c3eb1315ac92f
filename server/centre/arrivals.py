"""Collect answers part by part as they are uploaded, without ever waiting for one of them.

Flower's ``HttpGrid.pull_messages`` takes an answer that is announced and then waits, for up to two
hours, until all its parts are there; a site that dies during its upload would hold up every other.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid import HttpGrid

logger = logging.getLogger(__name__)

STALLED_AFTER = 60.0
"""Seconds without a new part after which an upload is given up: a site's own client gives up a part
after 30."""
AT_ONCE = 4
"""Whole answers handed over by one call: memory must not grow with the sites that answer together."""
_NODE = Node(node_id=SUPERLINK_NODE_ID)


@dataclass
class _Arrival:
    """An answer of which some parts may still be on their way."""

    message_id: str
    reply_to: str
    parts: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    moved: float = field(default_factory=time.monotonic)


class Arrivals:
    """The answers of one run that are under way to its ServerApp."""

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._arriving: dict[str, _Arrival] = {}

    @property
    def under_way(self) -> bool:
        """Whether parts of an answer are still to come."""
        return bool(self._arriving)

    def pull(self, ids: Sequence[str]) -> list[Message]:
        """Return the answers to some messages that are there whole, or lost; never waits for a part.

        Raises:
            httpx.HTTPError: if the SuperLink does not answer; nothing taken so far is lost.
        """
        for reply_to in self._arriving.keys() - {*ids}:
            del self._arriving[reply_to]  # nobody waits for it any more
        announced = [message_id for message_id in ids if message_id not in self._arriving]
        if announced:
            self._announce(self._client.PullMessages(PullAppMessagesRequest(message_ids=announced)))
        whole: list[Message] = []
        try:
            for arrival in list(self._arriving.values()):
                message = self._advance(arrival)
                if message is not None:
                    del self._arriving[arrival.reply_to]
                    whole.append(message)
                if len(whole) == AT_ONCE:
                    break  # the others wait at the SuperLink, not in our memory
        except httpx.HTTPError:
            if not whole:
                raise
        return whole

    def _announce(self, response: PullAppMessagesResponse) -> None:
        """Note what is on its way: from now on Flower no longer tells of it."""
        for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
            found = proto.metadata
            arrival = _Arrival(found.message_id, found.reply_to_message_id, parts)
            self._arriving[arrival.reply_to] = arrival

    @property
    def _client(self) -> Any:
        return self._grid._runtime_client

    @property
    def _run(self) -> int:
        return int(self._grid.run.run_id)

    def _advance(self, arrival: _Arrival) -> Message | None:
        """Fetch the parts that are there; returns the message once it is whole, or an error."""
        for part in arrival.parts:
            if part in arrival.contents:
                continue
            request = PullObjectRequest(node=_NODE, run_id=self._run, object_id=part)
            response = self._client.PullObject(request)
            if not response.object_found:
                return self._lost(arrival)
            if response.object_available:
                arrival.contents[part] = response.object_content
                arrival.moved = time.monotonic()
        if len(arrival.contents) < len(arrival.parts):
            stalled = time.monotonic() - arrival.moved > STALLED_AFTER
            return self._lost(arrival) if stalled else None
        try:
            message = cast(Message, inflate_object_from_contents(arrival.message_id, arrival.contents))
            message.metadata.__dict__["_message_id"] = arrival.message_id
            fits = message.metadata.reply_to_message_id == arrival.reply_to
        except Exception:  # noqa: BLE001  (whatever a site has put together, the run goes on without it)
            fits = False
        self._confirm(arrival)
        return message if fits else self._error(arrival, ErrorCode.UNKNOWN)

    def _confirm(self, arrival: _Arrival) -> None:
        """Tell Flower that it may delete it; where that fails it does so when the run ends."""
        request = ConfirmMessageReceivedRequest(
            node=_NODE, run_id=self._run, message_object_id=arrival.message_id
        )
        with contextlib.suppress(httpx.HTTPError):
            self._client.ConfirmMessageReceived(request)

    def _lost(self, arrival: _Arrival) -> Message:
        there = f"{len(arrival.contents)} of {len(arrival.parts)} parts"
        logger.warning("an answer was lost during its upload (%s arrived)", there)
        return self._error(arrival, ErrorCode.MESSAGE_UNAVAILABLE)

    def _error(self, arrival: _Arrival, code: int) -> Message:
        metadata = Metadata(
            run_id=self._run,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=SUPERLINK_NODE_ID,
            message_type=SYSTEM_MESSAGE_TYPE,
            group_id="",
            ttl=0,
            reply_to_message_id=arrival.reply_to,
            created_at=time.time(),
        )
        return make_message(metadata=metadata, error=Error(code))
