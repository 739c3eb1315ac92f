"""Between Flower's messages, made of objects, and what the site works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run

from client.node.outbox import Entry
from common.errors import SchemaError
from common.protocol import Answer, Instruction
from common.wire import answer_to_records, instruction_from_records

AT_ONCE = 4
"""Objects of a message that travel at the same time."""


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


def write_reply(entry: Entry, answer: Answer) -> tuple[Any, ObjectTree, dict[str, bytes]]:
    """Return an answer in Flower's form: its message, its tree, its objects."""
    reply = Message(answer_to_records(answer), reply_to=message_from_proto(entry.request))
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree = get_object_tree(reply)
        objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
    return message_to_proto(remove_content_from_message(reply)), tree, objects


def run_settings(run: Run, fab: Fab) -> Mapping[str, Any]:
    """Return a run's settings as Flower gives them to a ClientApp.

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


def for_each(names: Sequence[str], work: Callable[[str], None]) -> None:
    """Do something for each name, a few at a time, since each waits for the network.

    Raises:
        Exception: the first that the work raised, in the order of the names, once none is under way.
    """
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        under_way = [pool.submit(work, name) for name in names]
        wait(under_way)
        for one in under_way:
            one.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
