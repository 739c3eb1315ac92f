"""A centre's line over a grid whose nodes do as they are told: answer, vanish, crash, lie, or are silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

from common.adapter import AdapterSchema
from common.protocol import Answer, Instruction
from common.wire import answer_to_records, instruction_from_records
from server.centre.folder import CentreFolder
from server.centre.line import CentreLine
from server.centre.provision import init_centre
from server.centre.registry import Registry
from server.federation import Federation
from server.ledger import Ledger
from tests.ports import free_port

RUN = 77
NODES = {"north": 2**63 + 1, "south": 2**62 + 2, "east": 3}

Deed = Callable[[Instruction], Answer | int | None]
"""What a node makes of an instruction: an answer, the number of a Flower error, or nothing at all."""


@dataclass
class Hall(Grid):
    """Nodes that a test connects, disconnects and tells what to do; ``dead`` is the SuperLink itself."""

    online: set[int] = field(default_factory=set)
    deeds: dict[int, Deed] = field(default_factory=dict)
    asked: list[tuple[int, Instruction]] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    dead: Callable[[str], bool] = lambda call: False
    ended: bool = False
    """Flower has ended the run."""
    _waiting: dict[str, Message] = field(default_factory=dict)

    def _alive(self, call: str) -> None:
        if self.ended:
            raise RunNotRunningException
        if self.dead(call):
            raise httpx.ConnectError("refused")

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(RUN)

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *arguments: Any, **more: Any) -> list[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        self._alive("nodes")
        return list(self.online)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            self.pushed.append(message.object_id)
            if self.dead("lost push"):  # it arrives, and nobody is told
                self._waiting.setdefault(message.object_id, message)
                raise httpx.ReadTimeout("no answer")
            self._alive("push")
            self._waiting.setdefault(message.object_id, message)
            ids.append(message.object_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._alive("pull")
        replies = []
        for message_id in message_ids:
            if message_id not in self._waiting:
                continue
            message = self._waiting[message_id]
            node = message.metadata.dst_node_id
            instruction = instruction_from_records(message.metadata.message_type, message.content)
            if node not in self.online:
                done: Answer | int | None = 5
            else:
                self.asked.append((node, instruction))
                done = self.deeds[node](instruction)
            if done is None:
                continue
            del self._waiting[message_id]
            content = Error(done) if isinstance(done, int) else answer_to_records(done)
            replies.append(Message(content, reply_to=message))
        return replies


def enrolment(name: str, studies: int = 20) -> Answer:
    """What an honest site enrols with."""
    counts = {"train-studies": studies, "validation-studies": 5, "test-studies": 5, "patients": 25}
    return Answer(name, metrics={**counts, "owned": [1]})


def honest(name: str) -> Deed:
    """A site that enrols and returns an update of ones."""

    def do(instruction: Instruction) -> Answer:
        if instruction.stage == "enrol":
            return enrolment(name)
        update = np.ones(2, np.float32) * 0.1
        return Answer(
            name, update=update, metrics={"num-examples": 20, "labelled": [20], "loss": 0.5, "steps": 3}
        )

    return do


@dataclass
class Centre:
    """A registry, a ledger and a key in a folder, and the hall behind the line."""

    hall: Hall
    registry: Registry
    ledger: Ledger
    key: Ed25519PrivateKey

    def line(self) -> CentreLine:
        return CentreLine(self.hall, self.ledger, self.registry, self.key, RUN)

    def federation(self, make_config: Callable[..., Any], **over: Any) -> Federation:
        config = make_config(**({"rounds__deadline": 5.0, "data__findings": "effusion"} | over))
        schema = AdapterSchema((("w", (2,)),), ())
        return Federation(self.line(), config, "p" * 64, "b" * 64, schema, self.ledger)

    def events(self, kind: str) -> list[Any]:
        return [event for event in self.ledger.events() if event.kind == kind]


@pytest.fixture
def centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Centre]:
    """A centre with north, south and east admitted and connected, all honest."""
    import server.exchange
    import server.federation

    monkeypatch.setattr(server.exchange, "_LOOK", 0.02)
    monkeypatch.setattr(server.federation, "_SAY_AFTER", 0.1)
    monkeypatch.setattr(server.federation, "JOINING", 1.0)
    monkeypatch.setattr("server.centre.line._REGISTRY_AGE", 0.05)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 1
    registry, ledger = Registry(tmp_path / "registry.sqlite"), Ledger(tmp_path / "ledger.sqlite")
    for name, node in NODES.items():
        secret = registry.invite(name)
        registry.admit(name, f"key of {name}".encode(), f"ed25519:{name}", secret)
        registry.set_node_id(name, node)
    hall = Hall(set(NODES.values()), {node: honest(name) for name, node in NODES.items()})
    yield Centre(hall, registry, ledger, Ed25519PrivateKey.generate())
    registry.close()
    ledger.close()


@pytest.fixture(name="nodes")
def _nodes() -> dict[str, int]:
    return NODES


@pytest.fixture(name="honest")
def _honest() -> Callable[[str], Deed]:
    return honest


@pytest.fixture(name="enrolment")
def _enrolment() -> Callable[..., Answer]:
    return enrolment


@pytest.fixture(scope="session")
def provision() -> Callable[..., CentreFolder]:
    """Set up a centre in a folder, with two sites admitted: east is node 2**63 + 5 and north node 7.

    Without ``numbered`` a SuperLink has still to give them numbers.
    """

    def make(folder: Path, numbered: bool = True) -> CentreFolder:
        address = f"127.0.0.1:{free_port()}"
        made = init_centre(folder, "centre", address, address, f"127.0.0.1:{free_port()}", [])
        with Registry(made.registry) as registry:
            for name, node in {"east": 2**63 + 5, "north": 7}.items():
                secret = registry.invite(name)
                _, public = generate_key_pairs()
                registry.admit(name, public_key_to_bytes(public), f"ed25519:{name}", secret)
                if numbered:
                    registry.set_node_id(name, node)
        return made

    return make
