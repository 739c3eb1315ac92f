"""The journal of a site: every instruction taken and every answer, until the centre has it.

One folder per message: ``request.pb`` and ``objects/`` as they came, ``state.json``, and once it is
finished ``reply.pb`` and ``replies``, all its objects in one file: each file costs a flush to disk
while a round waits. Every step is a whole file renamed into place, so a process that dies at any line
finds what it did before.

    arriving -> here -> accepted -> answered -> audited -> (gone)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from common.errors import SchemaError
from common.files import sync_folder, write_atomic

State = Literal["arriving", "here", "accepted", "answered", "audited"]
MAX_INSTRUCTION = 4_000_000_000
"""Bytes of all objects of one instruction."""
_log = logging.getLogger(__name__)


@dataclass
class Entry:
    """One message in the journal."""

    path: Path

    @property
    def message_id(self) -> str:
        """Flower's name of the message."""
        return self.path.name

    @property
    def request(self) -> MessageProto:
        """The instruction as it came, without its content."""
        return PullMessagesResponse.FromString((self.path / "request.pb").read_bytes()).messages_list[0]

    @property
    def tree(self) -> ObjectTree:
        """Which objects the instruction is made of."""
        response = PullMessagesResponse.FromString((self.path / "request.pb").read_bytes())
        return response.message_object_trees[0]

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it: ``state``, ``received``, ``attempts`` and ``about``."""
        found: dict[str, Any] = json.loads((self.path / "state.json").read_bytes())
        return found

    @property
    def state(self) -> State:
        """How far it is."""
        state: State = self.facts["state"]
        return state

    def note(self, **facts: Any) -> None:
        """Write down how far it is."""
        self._write("state.json", json.dumps({**self.facts, **facts}).encode())

    def expired(self) -> bool:
        """Whether the centre no longer waits for the answer."""
        return self.patience() < 0

    def patience(self) -> float:
        """Return the seconds for which the centre still waits for the answer."""
        metadata = self.request.metadata
        return float(metadata.created_at + metadata.ttl - time.time())

    def put(self, object_id: str, content: bytes) -> None:
        """Keep one object of the instruction; several threads may.

        Raises:
            SchemaError: if it is not what its name says, or the instruction becomes too large.
        """
        if hashlib.sha256(content).hexdigest() != object_id:
            raise SchemaError("an object of an instruction is not what its name says")
        here = [file for file in (self.path / "objects").iterdir() if file.name[0] != "."]
        if sum(file.stat().st_size for file in here) + len(content) > MAX_INSTRUCTION:
            raise SchemaError("an instruction is larger than any may be")
        self._write(f"objects/{object_id}", content)

    def has(self, object_id: str) -> bool:
        """Whether an object is here."""
        return (self.path / "objects" / object_id).exists()

    def object(self, object_id: str) -> bytes:
        """Return one object of the instruction."""
        return (self.path / "objects" / object_id).read_bytes()

    def answer(self, message: MessageProto, tree: ObjectTree, objects: Mapping[str, bytes]) -> None:
        """Keep the reply, whole, before any of it leaves."""
        sizes = json.dumps({object_id: len(content) for object_id, content in objects.items()}).encode()
        self._write("replies", b"\n".join((sizes, b"".join(objects.values()))))
        request = PushMessagesRequest(messages_list=[message], message_object_trees=[tree])
        self._write("reply.pb", request.SerializeToString(deterministic=True))
        self.note(state="answered")

    @property
    def reply(self) -> PushMessagesRequest:
        """The reply's message and tree."""
        return PushMessagesRequest.FromString((self.path / "reply.pb").read_bytes())

    def replies(self) -> dict[str, bytes]:
        """Return the objects of the reply."""
        data = (self.path / "replies").read_bytes()
        first = data.index(b"\n")
        found, begin = {}, first + 1
        for object_id, size in json.loads(data[:first]).items():
            found[object_id] = data[begin : begin + size]
            begin += size
        return found

    def drop(self) -> None:
        """Take it out of the journal."""
        gone = self.path.with_name(f".gone-{self.path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        if self.path.exists():
            self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self.path / name, data)


class Outbox:
    """All messages in the journal."""

    def __init__(self, folder: Path, tidy: bool = True) -> None:
        """Open the journal; ``tidy`` removes what a dead process left unfinished, for its owner only."""
        self.folder = folder / "messages"
        if tidy:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in (*self.folder.glob(".new-*"), *self.folder.glob(".gone-*")):
                shutil.rmtree(unfinished, ignore_errors=True)

    def take(self, message: MessageProto, tree: ObjectTree) -> Entry:
        """Write down an instruction that has arrived; its objects follow.

        Raises:
            SchemaError: if its name is not one Flower gives.
        """
        name = message.metadata.message_id
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise SchemaError("a message has no proper name")
        path, new = self.folder / name, self.folder / f".new-{name}"
        if path.exists():
            return Entry(path)
        (new / "objects").mkdir(parents=True)
        response = PullMessagesResponse(messages_list=[message], message_object_trees=[tree])
        write_atomic(new / "request.pb", response.SerializeToString(deterministic=True))
        facts = {"state": "arriving", "received": time.time(), "attempts": 0}
        facts["about"] = {"run": str(message.metadata.run_id)}
        write_atomic(new / "state.json", json.dumps(facts).encode())
        os.replace(new, path)
        sync_folder(self.folder)
        return Entry(path)

    def find(self, message_id: str) -> Entry | None:
        """Return a message by Flower's name of it."""
        return next((entry for entry in self.entries() if entry.message_id == message_id), None)

    def entries(self) -> list[Entry]:
        """Return what is in the journal, oldest first."""
        return [entry for _, entry in sorted(self._readable(), key=lambda pair: pair[0])]

    def _readable(self) -> Iterator[tuple[float, Entry]]:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name.startswith("."):
                continue
            entry = Entry(path)
            try:
                received = float(entry.facts["received"])
                _ = entry.request
            except (OSError, ValueError, KeyError, TypeError, IndexError, DecodeError):
                _log.warning("an instruction in the journal is damaged and set aside: %s", path.name)
                path.rename(path.with_name(f".damaged-{path.name}"))
                continue
            yield received, entry
