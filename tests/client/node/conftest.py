"""A deployed site's folder, and Flower's own state of a SuperLink to ask it from."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers

from client.gate.approval import approve
from client.gate.audit import read_audit
from client.gate.policy import policy_text
from client.node.fleet import Released, Traffic
from client.node.gates import SiteGate
from client.node.outbox import Outbox
from client.node.seam import Connection, Seam
from client.node.standing import Standing
from client.place import SiteFolder
from client.site import load_site
from common.code import code_digest
from common.config import RunConfig, Scalar
from common.protocol import MESSAGE_TYPES, Answer, Instruction
from common.signing import create_signing_key, public_text, sign
from common.wire import answer_from_records, instruction_to_records

BASE = "b" * 64
PLAN = RunConfig.build({"rounds": {"quorum": 3}, "data": {"findings": ("effusion", "edema")}})
SITE = 'name = "north"\n[data]\ntable = "studies.csv"\n[labels]\neffusion = "Effusion"\nedema = "Edema"\n'


def tiny_fab(plan: RunConfig) -> bytes:
    """A bundle that holds a plan's settings and nothing that runs."""
    tree: dict[str, Any] = {}
    for key, value in plan.to_flat().items():
        *path, name = key.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[name] = value
    app = {
        "publisher": "fedcxr",
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": tree,
    }
    project = {"name": "fedcxr", "version": "0.1.0", "license": "Apache-2.0"}
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        # With a fixed date: the same bytes whenever it is made.
        entry = zipfile.ZipInfo("pyproject.toml")
        archive.writestr(entry, tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}))
    return written.getvalue()


@dataclass
class Link:
    """Flower's state of a SuperLink with one run, and a site's node in it."""

    state: LinkState
    node: int
    run: int
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sent: list[str] = field(default_factory=list)
    """What reached the centre, by method, in order."""
    bodies: list[bytes] = field(default_factory=list)
    """Every byte a site pushed."""
    upload: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Session, name and content of each part of the last message."""

    @property
    def centre_key(self) -> str:
        return public_text(self.key)

    def instruction(self, **changes: Any) -> Instruction:
        """A signed instruction that the site should follow, but for the changes."""
        told = Instruction(
            stage="train",
            plan_digest=PLAN.plan_digest(BASE, code_digest()),
            code_digest=code_digest(),
            base_digest=BASE,
            round=1,
            adapter=np.arange(6, dtype=np.float32),
            run=str(self.run),
            site="north",
            sequence=1,
        )
        return self.signed(dataclasses.replace(told, **changes))

    def signed(self, told: Instruction) -> Instruction:
        return dataclasses.replace(told, signature=sign(self.key, told.signed_bytes()))

    def ask(self, instruction: Instruction, ttl: float = 600.0, complete: bool = True) -> str:
        """Put an instruction where the site finds it, as a ServerApp does."""
        return self.put(instruction_to_records(instruction), MESSAGE_TYPES[instruction.stage], ttl, complete)

    def put(self, records: RecordDict, kind: str, ttl: float = 600.0, complete: bool = True) -> str:
        before = dict(vars(TaskIdentity))
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run, 1, 1
        message = Message(records, self.node, kind, ttl=ttl)
        for name in ("_run_id", "_node_id", "_task_id"):
            setattr(TaskIdentity, name, before[name])
        message.metadata.__dict__["_message_id"] = message.object_id
        session = self.state.start_session(self.run)
        tree = get_object_tree(message)
        objects = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        bare = message_from_proto(message_to_proto(message))
        stored, missing = self.state.store_message_and_object_tree(bare, tree, session)
        assert stored
        self.upload = [(session, name, objects[name]) for name in missing]
        if complete:
            assert all(self.state.store_object(self.run, *part) for part in self.upload)
        return message.metadata.message_id

    def answers(self, *asked: str) -> list[Answer]:
        """What came back, read as the centre reads it."""
        found = []
        for message in self.state.get_message_res(message_ids=set(asked), run_id=self.run):
            if message.has_error():
                raise AssertionError(message.error)
            tree = self.state.object_store.get_object_tree(message.metadata.message_id)
            parts = [part.object_id for part in iterate_object_tree(tree)]
            ends = time.monotonic() + 10
            while not all(map(self.state.object_store.get, parts)):  # they follow their message
                assert time.monotonic() < ends
                time.sleep(0.05)
            contents = {name: self.state.object_store.get(name) or b"" for name in parts}
            whole = inflate_object_from_contents(tree.object_id, contents)
            found.append(answer_from_records(whole.content))
        return found

    def finish(self) -> None:
        """End the run."""
        assert self.state.stop_run(self.run)

    def connection(self) -> Connection:
        """The callbacks that Flower's HTTP connection gives, straight into the SuperLink's handlers."""
        node = Node(node_id=self.node)

        def call(name: str, *args: Any) -> Any:
            self.sent.append(name)
            try:
                return getattr(fleet_handlers, name)(*args)
            except FlowerError as error:
                raise RunNotRunningException from error

        def receive() -> tuple[Message, ObjectTree] | None:
            found = call("pull_messages", PullMessagesRequest(node=node), self.state, self.state.object_store)
            if not found.messages_list:
                return None
            return message_from_proto(found.messages_list[0]), found.message_object_trees[0]

        def send(message: Message, tree: ObjectTree, runtime: float) -> tuple[set[str], str]:
            request = PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(message)],
                message_object_trees=[tree],
                clientapp_runtime_list=[runtime],
            )
            self.bodies.append(request.SerializeToString())
            found = call("push_messages", request, self.state)
            return set(found.objects_to_push), found.session_id

        def push(run: int, session: str, object_id: str, content: bytes) -> None:
            self.bodies.append(content)
            request = PushObjectRequest(
                node=node, run_id=run, session_id=session, object_id=object_id, object_content=content
            )
            assert call("push_object", request, self.state).stored

        def pull(run: int, object_id: str) -> bytes:
            def ask(request: PullObjectRequest) -> Any:
                return call("pull_object", request, self.state)

            return make_pull_object_fn_protobuf(ask, node, run)(object_id)

        def confirm(run: int, message_id: str) -> None:
            request = ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=message_id)
            call("confirm_message_received", request, self.state, self.state.object_store)

        return Connection(
            self.node,
            receive,
            send,
            lambda run: run_from_proto(call("get_run", GetRunRequest(node=node, run_id=run), self.state).run),
            lambda digest, run: fab_from_proto(
                call("get_fab", GetFabRequest(node=node, hash_str=digest, run_id=run), self.state).fab
            ),
            pull,
            push,
            confirm,
        )


def new_run(state: LinkState, fab: bytes, override: Mapping[str, Scalar] | None = None) -> int:
    """A run that goes on, as after its ServerApp has started."""
    digest = state.store_fab(Fab(hashlib.sha256(fab).hexdigest(), fab, {}))
    run = state.create_run(
        "fedcxr/fedcxr",
        "0.1.0",
        digest,
        dict(override or {}),
        NOOP_FEDERATION_ID,
        None,
        None,
        TaskType.SERVER_APP,
    )
    (info,) = state.get_run_info(run_ids=[run])
    assert info.primary_task_id is not None
    assert state.claim_task(info.primary_task_id)
    assert state.activate_task(info.primary_task_id)
    return run


@pytest.fixture(scope="session")
def new_link() -> Callable[..., Link]:
    """A run in a SuperLink that there is already."""

    def make(state: LinkState, node: int, fab: bytes, plan: RunConfig, key: Ed25519PrivateKey) -> Link:
        return Link(state, node, new_run(state, fab, plan.to_flat()), key)

    return make


@pytest.fixture
def link() -> Link:
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state = factory.state()
    node = state.create_node("owner", "owner", b"a key", 0)
    assert state.activate_node(node, 30)
    return Link(state, node, new_run(state, tiny_fab(PLAN)))


class Killed(BaseException):
    """Stands for the end of the process, wherever it is raised."""


@dataclass
class Site:
    """A site's node without its HTTP line: our seam between a SuperLink and a worker of this process."""

    folder: SiteFolder
    link: Link
    works: Callable[[Instruction], Answer]
    """What the worker does."""
    said: list[str] = field(default_factory=list)
    asked: list[Instruction] = field(default_factory=list)
    """What reached the worker."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    patience: float = 0.0
    killed: ClassVar = Killed

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin as a process does that knows only what lies on disk."""
        site = load_site(self.folder.settings)
        standing = Standing(self.folder, "the centre", self.said.append)
        gate = SiteGate(self.folder, site, self.link)
        self.outbox = Outbox(self.folder.outbox)
        self.seam = Seam(
            site.name,
            self.link.connection(),
            self.outbox,
            gate,
            standing,
            Released(),
            Traffic(gate.record),
            self.work,
        )

    def work(self, instruction: Instruction, settings: Mapping[str, Any], patience: float) -> Answer:
        self.asked.append(instruction)
        self.settings, self.patience = settings, patience
        return self.works(instruction)

    def go(self) -> None:
        """Do all there is to do."""
        while self.seam.turn():
            pass

    def dies(self, *_: object) -> Any:
        """Stands where the process is killed."""
        raise Killed

    def dies_over(self, work: Callable[[Instruction], Answer] | None = None) -> None:
        """Take an instruction and be killed while the worker works on it; start again."""
        before, self.works = self.works, work or self.dies
        with pytest.raises(Killed):
            self.go()
        self.works = before
        self.start()

    def audit(self, *kinds: str) -> list[dict[str, Any]]:
        return [line for line in read_audit(self.folder) if not kinds or line["kind"] in kinds]


@pytest.fixture
def make_site_folder(tmp_path: Path) -> Callable[[bytes], SiteFolder]:
    def make(fab: bytes) -> SiteFolder:
        root = tmp_path / "north"
        root.mkdir()
        (root / "site.toml").write_text(SITE)
        (root / "policy.toml").write_text(policy_text())
        folder = SiteFolder.of(root)
        create_signing_key(folder.signing_key)
        approve(folder, fab, [BASE], "Dr. Who")
        return folder

    return make


@pytest.fixture
def site(link: Link, make_site_folder: Callable[[bytes], SiteFolder], trained: Answer) -> Site:
    return Site(make_site_folder(tiny_fab(PLAN)), link, lambda instruction: trained)


@pytest.fixture
def trained() -> Answer:
    """An update as the worker sends one."""
    metrics = {
        "num-examples": 32,
        "labelled": [20, 12],
        "steps": 1,
        "loss": 0.5,
        "seconds": 1.5,
        "validation-auroc": 0.75,
        "validation.effusion.auroc": 0.75,
        "validation.effusion.pr-auc": 0.6,
        "validation.effusion.ece": 0.1,
        "validation.effusion.positives": 20,
        "validation.effusion.negatives": 30,
    }
    return Answer("north", update=np.full(6, 0.01, np.float32), metrics=metrics)
