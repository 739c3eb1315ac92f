"""Ask sites something and collect their answers, with a deadline and by name."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict

from common.errors import RunError, SchemaError, WorkerError
from common.protocol import MESSAGE_TYPES, Answer, Instruction
from common.wire import answer_from_records, instruction_to_records, message_bytes
from server.line import Line

NODE_ERROR = "E_NODE_"
"""Begins the code of an error that Flower, not a site, answered with; its own number follows."""
_ON_THE_WAY = {f"{NODE_ERROR}{number}" for number in (3, 4, 5)}
"""Message or reply no longer there, node not connected: the site can be asked again."""
_CRASHED = {f"{NODE_ERROR}8", WorkerError.code}
"""A process at the site died over it: asked again, but not for ever."""
_TRIES = 3
_LOOK = 1.0
"""Seconds between looking who is connected."""


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
    """Without the updates they carried."""
    missing: tuple[int, ...]
    """Nodes that did not answer before the deadline."""
    down: int
    """Bytes of all instructions on the wire."""
    sent: Mapping[int, int]
    """Node -> bytes of the instructions to it."""


class Talk:
    """One instruction to some nodes, until each has answered or the deadline is over.

    On a line that is not steady a node whose message or answer was lost is asked again once it is
    connected, always within the same deadline, and never while an earlier question to it is open:
    so one answer of each is taken and no more.
    """

    def __init__(
        self,
        line: Line,
        instruction: Instruction,
        deadline: float,
        on_reply: Callable[[Reply], None] = lambda reply: None,
        on_lost: Callable[[int, str], None] = lambda node, code: None,
    ) -> None:
        self.replies: dict[int, Reply] = {}
        self._line, self._instruction, self._deadline = line, instruction, deadline
        self._on_reply, self._on_lost = on_reply, on_lost
        self._started = self._looked = time.monotonic()
        self._open: dict[str, int] = {}
        self._unsent: dict[int, Message] = {}
        self._away: set[int] = set()
        self._missing: list[int] = []
        self._tries: Counter[int] = Counter()
        self._sent: Counter[int] = Counter()

    @property
    def asked(self) -> set[int]:
        """Every node asked so far."""
        return {*self._tries}

    @property
    def waiting(self) -> set[int]:
        """Nodes whose answer is still to come."""
        return {*self._open.values(), *self._unsent, *self._away}

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() - self._started >= self._deadline

    def ask(self, node: int) -> None:
        """Ask a node; what the line does not take now is sent when it does."""
        left = self._deadline - (time.monotonic() - self._started) if self._tries[node] else self._deadline
        message = Message(
            instruction_to_records(self._line.seal(self._instruction, node)),
            node,
            MESSAGE_TYPES[self._instruction.stage],
            ttl=max(left, 1.0),
            group_id=str(self._instruction.round),
        )
        self._tries[node] += 1
        self._sent[node] += message_bytes(message)
        self._send(node, message)

    def listen(self) -> bool:
        """Take the answers that have come; False where there was none."""
        if self._unsent or self._away:
            self._try_again()
        arrived = self._line.pull(list(self._open)) if self._open else []
        for message in arrived:
            node = self._open.pop(message.metadata.reply_to_message_id, None)
            if node is not None:
                self._take(_read(message, node, time.monotonic() - self._started))
        return bool(arrived)

    def pause(self) -> None:
        """Wait a moment before listening again."""
        time.sleep(self._line.poll)

    def finish(self) -> Exchange:
        """Return what came.

        Raises:
            RunError: if it was our own end of the line that was dead at the deadline.
        """
        silent = self._line.silent()
        if self.waiting and silent > 0:
            raise RunError(
                "the SuperLink of this centre did not answer before the deadline",
                found=f"silent for {silent:.0f} s",
                fix="see that fedcxr-server start runs, then: fedcxr-server resume",
            )
        missing = (*self._missing, *sorted(self.waiting))
        return Exchange(self.replies, missing, self._sent.total(), dict(self._sent))

    def _send(self, node: int, message: Message) -> None:
        message_id = self._line.push(message)
        if message_id is not None:
            self._open[message_id] = node
        elif self._line.steady:
            self._missing.append(node)
        else:
            # The same message, so that Flower knows it again should the first have arrived after all.
            self._unsent[node] = message

    def _try_again(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        known, present = self._line.admitted(), set(self._line.present())
        for node in {*self._unsent, *self._away} - known.keys():  # revoked meanwhile
            self._unsent.pop(node, None)
            self._away.discard(node)
            self._missing.append(node)
        for node in sorted(present & self._unsent.keys()):
            self._send(node, self._unsent.pop(node))
        for node in sorted(present & self._away):
            self._away.discard(node)
            self.ask(node)

    def _take(self, reply: Reply) -> None:
        crashed = reply.code in _CRASHED and self._tries[reply.node] < _TRIES
        if not self._line.steady and (reply.code in _ON_THE_WAY or crashed):
            self._away.add(reply.node)
            self._on_lost(reply.node, reply.code)
            return
        self._on_reply(reply)
        self.replies[reply.node] = _without_values(reply)


def ask(
    line: Line,
    nodes: Iterable[int],
    instruction: Instruction,
    deadline: float,
    on_reply: Callable[[Reply], None] = lambda reply: None,
    on_lost: Callable[[int, str], None] = lambda node, code: None,
) -> Exchange:
    """Send one instruction to some nodes and wait until all have answered or the deadline is over.

    ``deadline`` is in seconds. A message that the network cannot take counts as missing; an
    answer after the deadline expires with the message.
    """
    talk = Talk(line, instruction, deadline, on_reply, on_lost)
    for node in nodes:
        talk.ask(node)
    while talk.waiting and not talk.over:
        if not talk.listen():
            talk.pause()
    return talk.finish()


def _without_values(reply: Reply) -> Reply:
    """Let go of the update: whoever wanted it has it, and a round of many sites would keep all of them."""
    if reply.answer is None or reply.answer.update is None:
        return reply
    return dataclasses.replace(reply, answer=dataclasses.replace(reply.answer, update=None))


def _read(message: Message, node: int, seconds: float) -> Reply:
    up = message_bytes(message)
    if message.has_error():
        return Reply(node, None, f"{NODE_ERROR}{message.error.code}", up, seconds)
    try:
        answer = answer_from_records(message.content)
    except SchemaError as error:
        return Reply(node, None, error.code, up, seconds)
    finally:
        let_go(message.content)
    return Reply(node, answer, answer.code, up, seconds)


def let_go(records: RecordDict) -> None:
    """Empty records that were read.

    Flower's records refer to themselves, so their bytes would stay until the garbage collector comes by.
    """
    for record in records.values():
        record.clear()
