"""An in-process Grid: every message passes Flower's own serialisation, nothing else of Flower runs.

Deterministic and ready at once, for a laptop and for tests. A node works when its answer is
asked for, one node at a time, in the order the messages were sent; where nodes meet to train in one
pass, several of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, cast
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.protocol import MESSAGE_TYPES

if TYPE_CHECKING:
    from simulations.stacked.meeting import Meeting

logger = logging.getLogger(__name__)

Tamper = Callable[[Message], Message | None]
"""What happens to a reply on its way: it may be changed or lost (None)."""

_APP_ERROR = 2
_TRAINS = {MESSAGE_TYPES["train"], MESSAGE_TYPES["local"]}
"""What nodes answer together where they meet."""


class InlineGrid(Grid):
    """Nodes of one process; ``contexts`` gives each its node config and the run's config."""

    def __init__(
        self,
        app: ClientApp,
        contexts: Mapping[int, Context],
        tamper: Tamper = lambda reply: reply,
        meeting: Meeting | None = None,
    ) -> None:
        self._app, self._contexts, self._tamper = app, contexts, tamper
        self._meeting = meeting
        self._pending: dict[str, Message] = {}
        run_id = next(iter(contexts.values())).run_id
        self._run = Run.create_empty(run_id)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, 1

    def set_run(self, run: Run) -> None:
        """Set the run this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid belongs to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message, as Flower's grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return every node."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; nothing is computed yet."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            sent = through_the_wire(message)
            sent.metadata.__dict__["_message_id"] = message.metadata.message_id
            self._pending[message.metadata.message_id] = sent
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the first waiting node work, or those that meet, and return what they reply."""
        wanted = set(message_ids)
        while waiting := [m for m in self._pending if m in wanted]:
            answers = self._next_answers(waiting)
            replies = [reply for answer in answers if (reply := self._tamper(answer)) is not None]
            if replies:
                return [through_the_wire(reply) for reply in replies]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until every node has worked."""
        waiting = self.push_messages(messages)
        replies: list[Message] = []
        while any(message_id in self._pending for message_id in waiting):
            replies += self.pull_messages(waiting)
        return replies

    def _next_answers(self, waiting: list[str]) -> list[Message]:
        first = self._pending[waiting[0]].metadata
        if self._meeting is None or first.message_type not in _TRAINS:
            return [self._answer(self._pending.pop(waiting[0]))]
        alike = [m for m in waiting if self._pending[m].metadata.message_type == first.message_type]
        messages = [self._pending.pop(m) for m in alike[: self._meeting.size]]
        return self._meeting.answer([partial(self._answer, message) for message in messages])

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception:
            # Flower would send the exception's text; nothing of it may leave a site.
            logger.debug("a node failed", exc_info=True)
            return Message(Error(_APP_ERROR), reply_to=message)


def through_the_wire(message: Message) -> Message:
    """Serialise and read back, so that nothing is aliased and the bytes are true."""
    with no_object_id_recompute():
        parts = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        return cast(Message, inflate_object_from_contents(message.object_id, parts))
