"""The way to the sites: Flower's grid, and who is behind each of its nodes.

A simulation's line is the grid itself: every node may take part and nothing is lost on the way. A
deployment's (``server/centre/line.py``) knows sites by name, signs, and survives interruptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from common.protocol import Instruction


class Line:
    """Nodes of one process or one cluster, reached without interruption."""

    poll = 0.05
    """Seconds between looking for answers."""
    steady = True
    """False: answers can be lost on the way, and nodes go and come back."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def present(self) -> list[int]:
        """Return the connected nodes that may take part."""
        return list(self.grid.get_node_ids())

    def admitted(self) -> Mapping[int, str]:
        """Return node -> site of all that may take part, connected or not; empty: anybody may."""
        return {}

    def seal(self, instruction: Instruction, node: int) -> Instruction:
        """Make an instruction one node's own."""
        del node
        return instruction

    def push(self, message: Message) -> str | None:
        """Send a message; returns its id, or None where it was not taken."""
        ids = list(self.grid.push_messages([message]))
        return ids[0] if ids and ids[0] else None

    def pull(self, ids: Sequence[str]) -> list[Message]:
        """Return the answers that have come to some messages."""
        return list(self.grid.pull_messages(ids))

    def silent(self) -> float:
        """Return for how many seconds our own end of the line has been dead; 0: it is not."""
        return 0.0
