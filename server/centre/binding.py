"""What a site's request may speak of: its own node, its own instructions, its own answers."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree, PushObjectResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from server.centre.credentials import Caller, DeniedError
from server.centre.events import Events
from server.centre.links import Instruction, Links
from server.centre.mailbook import Given, Mailbook

MOST_OBJECTS = 4_096
"""Objects of one answer; an update is one array and takes a handful."""
TAKEOVER_AFTER = 12.0
"""Seconds of silence after which a node may be activated anew; a living one polls every three."""

_OBJECT = re.compile(r"[0-9a-f]{64}")
_GROUP = re.compile(r"[A-Za-z0-9._:-]{0,64}")


@dataclass
class Bound:
    """A request that may pass."""

    path: str
    message: Any
    caller: Caller
    instead: bytes | None = None
    """An answer to give without asking Flower."""
    given: Given | None = None
    """push-messages and push-object: the instruction that is answered."""


class Binding:
    """Checks one request against Flower's tables and the mailbook; every call may block on disk."""

    def __init__(self, links: Links, mailbook: Mailbook, events: Events) -> None:
        self.links = links
        self.mailbook = mailbook
        self.events = events

    def bind(self, path: str, message: Any, caller: Caller, silent: float = 0.0) -> Bound:
        """Check that a request speaks of its sender's own things only.

        ``silent`` is how many seconds ago the site's node last called, activations aside.

        Raises:
            DeniedError: 401 if it names another node, as Flower would; 403 if it names another's message,
                object or run, or answers too late.
        """
        bound = Bound(path, message, caller)
        route = path.rpartition("/")[2]
        if route == "activate-node":
            if message.public_key != caller.key:
                raise DeniedError(401, "activates with another key", site=caller.site)
            self._take_over(caller, silent)
            return bound
        node = message.node_id if route == "deactivate-node" else message.node.node_id
        if node != caller.node:
            raise DeniedError(401, "names another node", site=caller.site)
        if route == "pull-messages":
            self.links.deliver_again(self.links.unconfirmed(node))
        elif route == "push-messages":
            self._answer(bound)
        elif route == "push-object":
            self._upload(bound)
        elif route in ("pull-object", "confirm-message-received"):
            wanted = message.object_id if route == "pull-object" else message.message_object_id
            self._own_object(wanted, caller, message.run_id)
        elif route in ("get-run", "get-fab"):
            self._own_run(message.run_id, caller)
        return bound

    def stored(self, path: str, body: bytes) -> bool:
        """Whether Flower's answer of status 200 really says that it has done it."""
        if not path.endswith("/push-object"):
            return True
        return bool(PushObjectResponse.FromString(body).stored)

    def conclude(self, bound: Bound, body: bytes) -> bytes:
        """Note what Flower answered, and return what the site gets.

        Raises:
            DeniedError: 403 if Flower has dropped an answer without a word.
        """
        if bound.path.endswith("/pull-messages"):
            return self._handed(bound, body)
        if bound.path.endswith("/push-messages"):
            return self._answered(bound, body)
        if bound.path.endswith("/push-object"):
            return self._uploaded(bound, body)
        return body

    def _take_over(self, caller: Caller, silent: float) -> None:
        """Let a restarted node in at once.

        Flower waits a minute for the heartbeat of the one that died; the key says it is the same site,
        and silence that it is not running twice.
        """
        if caller.node is not None and silent > TAKEOVER_AFTER:
            self.links.set_offline(caller.node)

    def _handed(self, bound: Bound, body: bytes) -> bytes:
        for message in PullMessagesResponse.FromString(body).messages_list:
            found = message.metadata
            expires = found.created_at + found.ttl
            self.mailbook.hand(
                Given(found.message_id, found.dst_node_id, found.run_id, found.group_id, expires)
            )
        return body

    def _answer(self, bound: Bound) -> None:
        message, caller = bound.message, bound.caller
        if len(message.messages_list) != 1 or len(message.message_object_trees) != 1:
            raise DeniedError(400, "not one answer", site=caller.site)
        found, tree = message.messages_list[0].metadata, message.message_object_trees[0]
        if found.src_node_id != caller.node or found.dst_node_id != SUPERLINK_NODE_ID:
            raise DeniedError(403, "an answer from or to another node", site=caller.site)
        if not found.reply_to_message_id:
            raise DeniedError(403, "a message that answers nothing", site=caller.site)
        if tree.object_id != found.message_id or not _sound(tree):
            raise DeniedError(400, "an answer whose tree is not its own", site=caller.site)
        there = self.links.instruction(found.reply_to_message_id)
        given = self.mailbook.given(found.reply_to_message_id) or _as_given(there)
        if given is None:
            # Handed out before this file began, or never: Flower has deleted it, so it is over.
            if not self.links.has_run(found.run_id):
                raise DeniedError(403, "answers an instruction that nobody gave", site=caller.site)
            raise self._late(caller, found.run_id, found.group_id, "its instruction is no longer there")
        if given.node != caller.node or given.run != found.run_id:
            raise DeniedError(403, "answers another's instruction", site=caller.site)
        bound.given, in_time = given, given.expires > time.time()
        collected = given.complete or (there is None and in_time)
        if given.answer and given.answer != found.message_id and collected:
            raise DeniedError(403, "a second, different answer", site=caller.site)
        if given.answer == found.message_id and collected:
            # Sent again, as after a restart: it has been received and perhaps collected by now.
            results = {found.message_id: 0}
            bound.instead = PushMessagesResponse(results=results).SerializeToString()
            return
        if there is None or there.expires <= time.time():
            raise self._late(caller, given.run, given.group, _ago(given.expires))

    def _answered(self, bound: Bound, body: bytes) -> bytes:
        caller, given, found = bound.caller, bound.given, bound.message.messages_list[0].metadata
        if given is None:
            return body
        answer = PushMessagesResponse.FromString(body)
        parts = list(answer.objects_to_push)
        # With objects to push Flower has stored it; without, it may as well have dropped it.
        if not parts and not self.links.answer_stored(found.message_id):
            there = self.links.instruction(given.message)
            if there is None or there.expires <= time.time():
                raise self._late(caller, given.run, given.group, "just now")
            raise DeniedError(403, "an answer that does not fit its instruction", site=caller.site)
        self.mailbook.hand(given)
        self.mailbook.take(given.message, found.message_id, answer.session_id, complete=not parts)
        return body

    def _upload(self, bound: Bound) -> None:
        message, caller = bound.message, bound.caller
        given = self.mailbook.of_session(message.session_id) if message.session_id else None
        if given is None or given.node != caller.node or given.run != message.run_id:
            raise DeniedError(403, "a part of no answer of its own", site=caller.site)
        bound.given = given
        if self.links.waiting(message.session_id, message.object_id):
            self._sound_object(message, given, caller)
            return
        if given.complete or self._arrived(given, message.object_id):
            # Its first copy arrived and the word of that was lost; Flower would call it a failure.
            bound.instead = PushObjectResponse(stored=True).SerializeToString()

    def _sound_object(self, message: Any, given: Given, caller: Caller) -> None:
        """Check an object's own words against what was announced.

        The ServerApp reads an answer's metadata from the object, not from the announcement that
        Flower checked: without this a site answers in another's name.
        """
        try:
            kind, children, _ = get_object_head_values_from_object_content(message.object_content)
            if kind == "Message":
                found = ProtoMessage.FromString(get_object_body(message.object_content, Message)).metadata
        except (ValueError, DecodeError):
            raise DeniedError(400, "not an object", site=caller.site) from None
        if set(children) != self.links.children(message.object_id):
            raise DeniedError(400, "an object whose parts were not announced", site=caller.site)
        if (kind == "Message") != (message.object_id == given.answer):
            raise DeniedError(403, "a message inside an answer, or none", site=caller.site)
        if kind != "Message":
            return
        says = (found.src_node_id, found.dst_node_id, found.run_id, found.reply_to_message_id, found.group_id)
        if says != (caller.node, SUPERLINK_NODE_ID, given.run, given.message, given.group):
            raise DeniedError(403, "an answer in another's name", site=caller.site)

    def _arrived(self, given: Given, object_id: str) -> bool:
        return given.answer in self.links.roots(object_id) and self.links.available(object_id)

    def _uploaded(self, bound: Bound, body: bytes) -> bytes:
        stored = bool(PushObjectResponse.FromString(body).stored)
        if stored and bound.given and not self.links.pending(bound.message.session_id):
            self.mailbook.complete(bound.given.message)
        return body

    def _own_object(self, object_id: str, caller: Caller, run: int) -> None:
        if not _OBJECT.fullmatch(object_id):
            raise DeniedError(400, "not an object", site=caller.site)
        roots = self.links.roots(object_id) or [object_id]
        for root in roots:
            given = self.mailbook.given(root) or _as_given(self.links.instruction(root))
            if given is not None and given.node == caller.node and given.run == run:
                return
        raise DeniedError(403, "an object of another", site=caller.site)

    def _own_run(self, run: int, caller: Caller) -> None:
        node = caller.node or 0
        if not (self.links.asked(run, node) or self.mailbook.asked(run, node)):
            raise DeniedError(403, "a run that asked it nothing", site=caller.site)

    def _late(self, caller: Caller, run: int, group: str, when: str) -> DeniedError:
        group = group if _GROUP.fullmatch(group) else ""
        round_words = f", round {group}" if group else ""
        words = f"{caller.site}'s answer came after the deadline ({when}); refused (run {run}{round_words})"
        self.events.add("late", words, site=caller.site, run=str(run), group=group)
        return DeniedError(403, "late", site=caller.site, kind="late")


def _as_given(found: Instruction | None) -> Given | None:
    if found is None:
        return None
    return Given(found.message, found.node, found.run, found.group, found.expires)


def _ago(expires: float) -> str:
    return f"{max(time.time() - expires, 0):.0f} s ago"


def _sound(tree: ObjectTree) -> bool:
    """Whether a tree is small and names digests only."""
    waiting, count = [tree], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MOST_OBJECTS or not _OBJECT.fullmatch(node.object_id):
            return False
        waiting.extend(node.children)
    return True
