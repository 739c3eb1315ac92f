"""Questions to Flower's own tables: what is addressed to whom, what is stored, what waits.

The only module that knows the column names of flwr 1.41's SuperLink database; a test compares them
with the installed version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    HEARTBEAT_PATIENCE,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.state.schema.corestate_models import Task as TaskModel
from flwr.supercore.state.schema.linkstate_models import Node as NodeModel
from flwr.supercore.utils import int64_to_uint64, uint64_to_int64
from sqlalchemy import update

REDELIVER_AFTER = 10.0
"""Seconds after which an instruction that was sent, but not confirmed, is sent again."""

COLUMNS = {
    "message_ins": ("message_id", "group_id", "run_id", "dst_node_id", "created_at", "delivered_at", "ttl"),
    "message_res": ("message_id", "reply_to_message_id"),
    "objects": ("object_id", "is_available"),
    "object_children": ("parent_id", "child_id"),
    "object_push_session_pending": ("session_id", "object_id"),
    "object_push_session_roots": ("session_id", "root_object_id"),
}
"""Table -> columns used here."""


@dataclass(frozen=True)
class Instruction:
    """A message of the ServerApp to a node, as the SuperLink holds it."""

    message: str
    node: int
    run: int
    group: str
    expires: float


@dataclass(frozen=True)
class LinkNode:
    """A node that Flower knows."""

    node: int
    name: str
    key: bytes
    online: bool


class Links:
    """Reads, and two small repairs, on a SuperLink's state."""

    def __init__(self, state: LinkState) -> None:
        self.state = state

    def instruction(self, message: str) -> Instruction | None:
        """Return an instruction that is still there, or None."""
        rows = self._ask(
            "SELECT message_id, dst_node_id, run_id, group_id, created_at + ttl AS expires"
            " FROM message_ins WHERE message_id = :id",
            id=message,
        )
        if not rows:
            return None
        row = rows[0]
        node, run = int64_to_uint64(row["dst_node_id"]), int64_to_uint64(row["run_id"])
        return Instruction(row["message_id"], node, run, row["group_id"] or "", float(row["expires"]))

    def asked(self, run: int, node: int) -> bool:
        """Whether a run has an instruction for this node."""
        return bool(
            self._ask(
                "SELECT 1 AS one FROM message_ins WHERE run_id = :run AND dst_node_id = :node LIMIT 1",
                run=uint64_to_int64(run),
                node=uint64_to_int64(node),
            )
        )

    def has_run(self, run: int) -> bool:
        """Whether there is such a run."""
        return bool(self.state.get_run_info(run_ids=[run]))

    def answer_stored(self, message: str) -> bool:
        """Whether an answer waits to be collected."""
        return bool(self._ask("SELECT 1 AS one FROM message_res WHERE message_id = :id", id=message))

    def roots(self, object_id: str) -> list[str]:
        """Return an object and everything it is a part of, messages among them."""
        rows = self._ask(
            "WITH RECURSIVE up (id) AS (SELECT :id UNION"
            " SELECT parent_id FROM object_children JOIN up ON child_id = up.id) SELECT id FROM up",
            id=object_id,
        )
        return [row["id"] for row in rows]

    def children(self, object_id: str) -> set[str]:
        """Return the objects that an object was announced to consist of."""
        rows = self._ask("SELECT child_id FROM object_children WHERE parent_id = :id", id=object_id)
        return {row["child_id"] for row in rows}

    def available(self, object_id: str) -> bool:
        """Whether the content of an object is stored."""
        query = "SELECT 1 AS one FROM objects WHERE object_id = :id AND is_available = 1"
        return bool(self._ask(query, id=object_id))

    def pending(self, session: str) -> bool:
        """Whether parts are still missing in an upload."""
        query = "SELECT 1 AS one FROM object_push_session_pending WHERE session_id = :id LIMIT 1"
        return bool(self._ask(query, id=session))

    def waiting(self, session: str, object_id: str) -> bool:
        """Whether an upload waits for this very object."""
        query = (
            "SELECT 1 AS one FROM object_push_session_pending WHERE session_id = :id AND object_id = :part"
        )
        return bool(self._ask(query, id=session, part=object_id))

    def unconfirmed(self, node: int) -> list[str]:
        """Return instructions that were sent to a node a while ago and never confirmed nor answered.

        Flower hands an instruction out once: if the reply is lost on the way, so is the instruction.
        """
        now = datetime.now(UTC)
        rows = self._ask(
            "SELECT message_id FROM message_ins WHERE dst_node_id = :node AND delivered_at != ''"
            " AND delivered_at < :before AND created_at + ttl > :now"
            " AND EXISTS (SELECT 1 FROM objects WHERE object_id = message_id)"
            " AND NOT EXISTS (SELECT 1 FROM message_res WHERE reply_to_message_id = message_ins.message_id)",
            node=uint64_to_int64(node),
            before=(now - timedelta(seconds=REDELIVER_AFTER)).isoformat(),
            now=now.timestamp(),
        )
        return [row["message_id"] for row in rows]

    def deliver_again(self, messages: Sequence[str]) -> None:
        """Let the next pull have these instructions."""
        for message in messages:
            self._ask("UPDATE message_ins SET delivered_at = '' WHERE message_id = :id", id=message)

    def nodes(self) -> list[LinkNode]:
        """Return every node that is not deleted."""
        statuses = [NodeStatus.REGISTERED, NodeStatus.ONLINE, NodeStatus.OFFLINE]
        return [
            LinkNode(info.node_id, info.name, info.public_key, info.status == NodeStatus.ONLINE)
            for info in self.state.get_node_info(statuses=statuses)
        ]

    def add_node(self, name: str, key: bytes) -> int | None:
        """Register a node as Flower's Control API does; None if the key was used and deleted."""
        try:
            node = self.state.create_node(
                NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL, name=name
            )
        except ValueError:
            return None
        return node or None

    def remove_node(self, node: int) -> None:
        """Delete a node; its open instructions are answered with an error by Flower."""
        self.state.delete_node(NOOP_FLWR_AID, node)

    def set_offline(self, node: int) -> None:
        """Let a node that is silent be activated again at once."""
        self.state.deactivate_node(node)

    def give_time(self) -> None:
        """Let every running task and every node that is online live for a whole minute from now."""
        now = datetime.now(UTC)
        until = now + timedelta(seconds=HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL)
        with cast(Any, self.state).session() as session:
            session.execute(
                update(TaskModel)
                .where(TaskModel.finished_at.is_(None), TaskModel.active_until < until)
                .values(active_until=until)
            )
            session.execute(
                update(NodeModel)
                .where(NodeModel.status == NodeStatus.ONLINE, NodeModel.online_until < until.timestamp())
                .values(online_until=until.timestamp())
            )

    def task_exists(self, token: str) -> bool:
        """Whether a Runtime token belongs to a running task."""
        return self.state.get_task_by_token(token) is not None

    def _ask(self, query: str, **values: object) -> list[dict[str, Any]]:
        # query() is of Flower's SQL states only; a centre never runs on the one in memory.
        return cast(list[dict[str, Any]], cast(Any, self.state).query(query, values))
