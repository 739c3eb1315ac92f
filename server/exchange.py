"""Ask sites something and collect their answers, with a deadline and by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import SchemaError
from common.protocol import MESSAGE_TYPES, Answer, Instruction
from common.wire import answer_from_records, instruction_to_records, message_bytes

POLL = 0.05
"""Seconds between looking for answers."""


@dataclass(frozen=True)
class Reply:
    """What came back from one node: an answer, or the code of why there is none."""

    node: int
    answer: Answer | None
    code: str
    up: int
    """Bytes of the reply on the wire."""
    seconds: float
    """From the first question to this reply."""


@dataclass(frozen=True)
class Exchange:
    """A finished round trip."""

    replies: dict[int, Reply]
    missing: tuple[int, ...]
    """Nodes that did not answer before the deadline."""
    down: int
    """Bytes of all instructions on the wire."""


def ask(
    grid: Grid,
    nodes: Iterable[int],
    instruction: Instruction,
    deadline: float,
    on_reply: Callable[[Reply], None] = lambda reply: None,
) -> Exchange:
    """Send one instruction to some nodes and wait until all have answered or the deadline is over.

    ``deadline`` is in seconds. A message that the network cannot take counts as missing; an
    answer after the deadline expires with the message.
    """
    started = time.monotonic()
    pending: dict[str, int] = {}
    missing: list[int] = []
    down = 0
    for node in nodes:
        message = Message(
            instruction_to_records(instruction),
            node,
            MESSAGE_TYPES[instruction.stage],
            ttl=deadline,
            group_id=str(instruction.round),
        )
        down += message_bytes(message)
        ids = list(grid.push_messages([message]))
        if ids:
            pending[ids[0]] = node
        else:
            missing.append(node)
    replies: dict[int, Reply] = {}
    while pending and time.monotonic() - started < deadline:
        arrived = list(grid.pull_messages(list(pending)))
        for message in arrived:
            node = pending.pop(message.metadata.reply_to_message_id)
            replies[node] = reply = _read(message, node, time.monotonic() - started)
            on_reply(reply)
        if not arrived:
            time.sleep(POLL)
    return Exchange(replies, (*missing, *pending.values()), down)


def _read(message: Message, node: int, seconds: float) -> Reply:
    up = message_bytes(message)
    if message.has_error():
        return Reply(node, None, f"E_NODE_{message.error.code}", up, seconds)
    try:
        answer = answer_from_records(message.content)
    except SchemaError as error:
        return Reply(node, None, error.code, up, seconds)
    return Reply(node, answer, answer.code, up, seconds)


def named(names: Mapping[int, str], nodes: Iterable[int]) -> list[str]:
    """Return the site names of some nodes, sorted."""
    return sorted(names[node] for node in nodes)
