"""Between Flower's messages, made of objects, and what the site works with."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import Run

from client.node.outbox import Entry
from common.errors import EgressError, SchemaError
from common.protocol import Answer, Instruction
from common.wire import answer_from_records, answer_to_records, instruction_from_records

PATIENCE = 60.0
"""Seconds the objects of an answer may take to come from the ClientApp."""
_log = logging.getLogger(__name__)


def read_instruction(entry: Entry) -> Instruction:
    """Read an instruction from the journal.

    Raises:
        SchemaError: if it is not one of ours.
    """
    try:
        contents = {part.object_id: entry.object(part.object_id) for part in iterate_object_tree(entry.tree)}
        whole = inflate_object_from_contents(entry.tree.object_id, contents)
        if not isinstance(whole, Message) or not whole.has_content():
            raise SchemaError("a message holds no instruction")
        records = whole.content
    except SchemaError:
        raise
    except Exception:  # noqa: BLE001  (Flower's reader fails in many ways on foreign bytes)
        raise SchemaError("a message cannot be read") from None
    return instruction_from_records(entry.request.metadata.message_type, records)


def read_answer(store: ObjectStore, message: Message, tree: ObjectTree, site: str) -> Answer | None:
    """Read what a ClientApp hands back; None if it crashed, a bare code if it is no answer of ours."""
    if message.has_error():
        _log.warning("the ClientApp failed, Flower's code %s", message.error.code)
        return None
    try:
        whole = inflate_object_from_contents(tree.object_id, _gather(store, tree))
        if not isinstance(whole, Message) or whole.has_error():
            return None
        return answer_from_records(whole.content)
    except SchemaError as error:
        _log.warning("the ClientApp's answer is not one: %s", error)
        return Answer(site, code=EgressError.code)
    except Exception as error:  # noqa: BLE001  (Flower's reader fails in many ways on foreign bytes)
        _log.warning("the ClientApp's answer cannot be read: %s", type(error).__name__)
        return None


def write_reply(entry: Entry, answer: Answer) -> tuple[Any, ObjectTree, dict[str, bytes]]:
    """Return an answer in Flower's form: its message, its tree, its objects."""
    reply = Message(answer_to_records(answer), reply_to=message_from_proto(entry.request))
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree = get_object_tree(reply)
        objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
    return message_to_proto(remove_content_from_message(reply)), tree, objects


def run_settings(run: Run, fab: Fab) -> Mapping[str, Any]:
    """Return a run's settings as Flower's ClientApp will see them.

    Raises:
        SchemaError: if the app has no manifest that can be read.
    """
    try:
        return dict(get_fused_config_from_fab(fab.content, run))
    except Exception:  # noqa: BLE001  (Flower's reader fails in many ways on foreign bytes)
        raise SchemaError("the app of a run cannot be read") from None


def named(instruction: Instruction, run_id: int) -> dict[str, Any]:
    """Say what an instruction is, for records and status."""
    return {
        "run": str(run_id),
        "stage": instruction.stage,
        "round": instruction.round,
        "arm": instruction.arm[:40],
        "split": instruction.split,
        "sequence": instruction.sequence,
        "plan": instruction.plan_digest[:64],
    }


def _gather(store: ObjectStore, tree: ObjectTree) -> dict[str, bytes]:
    """Wait for the objects of an answer; a ClientApp that dies over them is not waited for for ever."""
    deadline = time.monotonic() + PATIENCE
    contents: dict[str, bytes] = {}
    for part in iterate_object_tree(tree):
        while not (content := store.get(part.object_id)):
            if content is None or time.monotonic() >= deadline:
                raise TimeoutError("an object of an answer did not come")
            time.sleep(0.05)
        validate_object_content(content)
        contents[part.object_id] = content
    return contents
