"""A real centre process over TLS, sites with Flower's own client, and a ServerApp's side of a run."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.serde import fab_to_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from server.centre.events import read_events
from server.centre.folder import CentreFolder
from server.centre.provision import init_centre
from server.centre.registry import Registry

PROTOBUF = "application/protobuf"


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class CentreProcess:
    """``python -m server.centre.superlink FOLDER``."""

    folder: CentreFolder
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)
    small_disk: int = 0
    """Bytes of a file system of its own, in a mount namespace of its own; 0 for none."""

    def __post_init__(self) -> None:
        self.log = self.folder.root.with_name("superlink.log")

    @property
    def ca(self) -> bytes:
        return self.folder.key("ca.crt").read_bytes()

    @property
    def public(self) -> str:
        return self.folder.config().listen

    @property
    def admin(self) -> str:
        return self.folder.config().admin

    @property
    def token(self) -> str:
        return self.folder.key("admin.token").read_text().strip()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        command = [sys.executable, "-m", "server.centre.superlink", str(self.folder.root)]
        if self.small_disk:
            script = (
                'set -e; root="$1"; shift; cp -a "$root" "$root.copy"'
                f' && mount -t tmpfs -o size={self.small_disk} none "$root"'
                ' && cp -a "$root.copy/." "$root" && exec "$@"'
            )
            command = ["unshare", "-Urm", "sh", "-c", script, "sh", str(self.folder.root), *command]
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                cwd=Path(__file__).parents[4],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.wait()

    def wait(self, seconds: float = 40.0) -> None:
        ends = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(f"https://{self.public}/health", verify=self.tls()).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.ca.decode())
        return context

    def post(self, face: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        sent = {"content-type": PROTOBUF} | {name.replace("_", "-"): v for name, v in headers.items()}
        return httpx.post(f"https://{face}{path}", content=body, headers=sent, verify=self.tls(), timeout=30)

    def connect(self, tls: bool = True) -> socket.socket:
        host, port = self.public.split(":")
        plain = socket.create_connection((host, int(port)), timeout=30)
        return self.tls().wrap_socket(plain, server_hostname=host) if tls else plain

    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def admit(self, name: str) -> Site:
        """Put a site with new keys in the registry and wait until the gateway knows its node."""
        site = self.register(name)
        site.wait_for_node()
        return site

    def register(self, name: str) -> Site:
        """Put a site with new keys in the registry."""
        private, public = generate_key_pairs()
        site = Site(self, name, private, public_key_to_bytes(public))
        with Registry(self.folder.registry) as registry:
            secret = registry.invite(name)
            registry.admit(name, site.key, f"ed25519:{hashlib.sha256(site.key).hexdigest()}", secret)
        return site

    def registry(self) -> Registry:
        return Registry(self.folder.registry)

    def events(self, **wanted: str) -> list[dict[str, Any]]:
        return [
            event
            for event in read_events(self.folder.logs)
            if all(event.get(name) == value for name, value in wanted.items())
        ]

    @property
    def inside(self) -> Path:
        """The folder as the process sees it; not for SQLite, which follows /proc to the outer one."""
        return Path(f"/proc/{self.pid}/root") / str(self.folder.root).lstrip("/")


@dataclass
class Site:
    """A site with keys; its requests are made by Flower's client unless a test forges them."""

    centre: CentreProcess
    name: str
    private: ec.EllipticCurvePrivateKey
    key: bytes
    node_id: int = 0

    def wait_for_node(self) -> None:
        ends = time.monotonic() + 10
        while time.monotonic() < ends:
            with self.centre.registry() as registry:
                self.node_id = registry.site(self.name).node_id or 0
            if self.node_id and self.post("pull-messages", PullMessagesRequest(node=self.node)).is_success:
                return
            time.sleep(0.05)
        raise AssertionError(self.centre.log.read_text())

    @property
    def node(self) -> Node:
        return Node(node_id=self.node_id)

    def client(self) -> FleetHttpClient:
        return FleetHttpClient.from_server_address(
            self.centre.public,
            False,
            self.centre.ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(self.private, self.private.public_key()),
            ],
        )

    def headers(self, age: float = 0.0, stamp: str = "") -> dict[str, str]:
        """Flower's three headers, signed ``age`` seconds ago."""
        when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
        stamp = stamp or when.isoformat()
        return {
            "flwr-public-key": base64.b64encode(self.key).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(sign_message(self.private, stamp.encode())).decode(),
        }

    def post(self, route: str, message: Any, **headers: str) -> httpx.Response:
        """Send any message to a Fleet route, with this site's credential."""
        signed = self.headers() | headers
        return self.centre.post(
            self.centre.public, f"/v1/fleet/{route}", message.SerializeToString(), **signed
        )

    def activate(self) -> int:
        with self.client() as client:
            request = ActivateNodeRequest(public_key=self.key, heartbeat_interval=30)
            return int(client.ActivateNode(request).node_id)

    def deactivate(self) -> None:
        with self.client() as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))

    def heartbeat(self) -> bool:
        with self.client() as client:
            request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=30)
            return bool(client.SendNodeHeartbeat(request).success)

    def pull(self) -> tuple[Message, ObjectTree] | None:
        """Ask for an instruction, without its objects."""
        with self.client() as client:
            found: PullMessagesResponse = client.PullMessages(PullMessagesRequest(node=self.node))
        if not found.messages_list:
            return None
        return message_from_proto(found.messages_list[0]), found.message_object_trees[0]

    def pull_object(self, run: int, object_id: str) -> httpx.Response:
        return self.post("pull-object", PullObjectRequest(node=self.node, run_id=run, object_id=object_id))

    def confirm(self, run: int, object_id: str) -> httpx.Response:
        request = ConfirmMessageReceivedRequest(node=self.node, run_id=run, message_object_id=object_id)
        return self.post("confirm-message-received", request)

    def answer(self, instruction: Message, number: float = 1.0) -> Answer:
        """Write an answer to an instruction; nothing is sent yet."""
        content = RecordDict({"update": ArrayRecord([np.full(4, number, np.float32)])})
        reply = Message(content, reply_to=instruction)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {key: value.deflate() for key, value in get_all_nested_objects(reply).items()}
        proto = message_to_proto(reply)
        proto.content.Clear()
        return Answer(self, proto, get_object_tree(reply), objects)


@dataclass
class Answer:
    """An answer that a test may change before it is sent."""

    site: Site
    proto: Any
    tree: ObjectTree
    objects: dict[str, bytes]
    session: str = ""

    def push(self, sender: Site | None = None) -> httpx.Response:
        sender = sender or self.site
        request = PushMessagesRequest(
            node=sender.node,
            messages_list=[self.proto],
            message_object_trees=[self.tree],
            clientapp_runtime_list=[0.1],
        )
        response = sender.post("push-messages", request)
        if response.status_code == 200:
            self.session = PushMessagesResponse.FromString(response.content).session_id
        return response

    def parts(self) -> list[str]:
        """Object ids, the message itself last."""
        return sorted(self.objects, key=lambda name: name == self.proto.metadata.message_id)

    def push_part(self, object_id: str, sender: Site | None = None, **change: Any) -> httpx.Response:
        sender = sender or self.site
        fields = {
            "node": sender.node,
            "run_id": self.proto.metadata.run_id,
            "session_id": self.session,
            "object_id": object_id,
            "object_content": self.objects.get(object_id, b""),
        }
        return sender.post("push-object", PushObjectRequest(**(fields | change)))

    def send(self) -> None:
        """Announce it and send every part."""
        assert self.push().status_code == 200
        for part in self.parts():
            assert self.push_part(part).status_code == 200


@dataclass
class Run:
    """A run, with the task that its ServerApp would have."""

    number: int
    grid: HttpGrid
    task_token: str

    def ask(self, site: Site, group: str = "1", ttl: float = 600.0, number: float = 0.5) -> str:
        """Send an instruction to a site as a ServerApp does; returns its message id."""
        content = RecordDict({"adapter": ArrayRecord([np.full(8, number, np.float32)])})
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.number, 1, 1
        message = Message(content, site.node_id, "train", ttl=ttl, group_id=group)
        (sent,) = self.grid.push_messages([message])
        assert sent
        return sent

    def collect(self, *messages: str) -> list[Message]:
        return list(self.grid.pull_messages(list(messages)))


class _AdminToken:
    def __init__(self, token: str) -> None:
        self.token = token

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        context.request.headers["authorization"] = f"Bearer {self.token}"
        return call_next(context)


def tiny_fab() -> bytes:
    """The smallest app that Flower's Control API takes."""
    files = {
        "pyproject.toml": (
            b'[project]\nname = "tiny"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
            b'[tool.flwr.app]\npublisher = "fedcxr"\n'
            b'[tool.flwr.app.components]\nserverapp = "tiny:server"\nclientapp = "tiny:client"\n'
            b"[tool.flwr.app.config]\n"
        ),
        "tiny.py": b"server = client = None\n",
    }
    listing = "".join(
        f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}\n" for name, data in files.items()
    )
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in (files | {".info/CONTENT": listing.encode()}).items():
            archive.writestr(name, data)
    return written.getvalue()


@pytest.fixture(scope="session")
def make_centre(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CentreFolder]:
    """A provisioned centre's folder on free loopback ports, with lines to add to centre.toml."""

    def make(**over: int) -> CentreFolder:
        listen, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        folder = init_centre(
            tmp_path_factory.mktemp("centre") / "centre", "centre", listen, listen, admin, ["127.0.0.1"]
        )
        settings = folder.root / "centre.toml"
        kept = [line for line in settings.read_text().splitlines() if line.split(" =")[0] not in over]
        changed = [f"{key} = {value}" for key, value in over.items()]
        settings.write_text("\n".join(kept + changed) + "\n")
        return folder

    return make


@pytest.fixture(scope="session")
def centre(make_centre: Callable[..., CentreFolder]) -> Iterator[CentreProcess]:
    """A running centre that tests share, each with sites of its own."""
    running = CentreProcess(make_centre())
    running.start()
    yield running
    assert running.process is not None
    if running.process.poll() is None:
        assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def own_centre(make_centre: Callable[..., CentreFolder]) -> Iterator[Callable[..., CentreProcess]]:
    """Start centres that a test may break, with changed settings."""
    started: list[CentreProcess] = []

    def make(start: bool = True, small_disk: int = 0, **over: int) -> CentreProcess:
        made = CentreProcess(make_centre(**over), small_disk=small_disk)
        started.append(made)
        if start:
            made.start()
        return made

    yield make
    for running in started:
        if running.process is not None and running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def start_run() -> Iterator[Callable[[CentreProcess], Run]]:
    """Start a run through Control, and take its task through Runtime as superexec does."""
    grids: list[HttpGrid] = []
    threads: list[threading.Thread] = []
    over = threading.Event()

    def keep_alive(centre: CentreProcess, token: str) -> None:
        """Send a task's heartbeats, as its process would; without them Flower ends it in a minute."""
        while not over.wait(5):
            with contextlib.suppress(httpx.TransportError):
                centre.post(centre.admin, "/v1/runtime/send-task-heartbeat", flwr_task_token=token)

    def start(centre: CentreProcess) -> Run:
        content = tiny_fab()
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        with ControlHttpClient.from_server_address(
            centre.admin, False, centre.ca, interceptors=[_AdminToken(centre.token)]
        ) as control:
            number = control.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id
            assert number in control.ListRuns(ListRunsRequest()).run_dict
        secret = centre.folder.key("superexec.secret").read_bytes()
        with RuntimeHttpClient.from_server_address(
            centre.admin,
            False,
            centre.ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flower-superexec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
                ),
            ],
        ) as runtime:
            request = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
            token = runtime.AcquireTask(request).token
        grid = HttpGrid(centre.admin, False, centre.ca, token=token)
        grids.append(grid)
        grid.set_run(run_from_proto(grid._runtime_client.PullTaskInput(PullTaskInputRequest()).run))
        beats = threading.Thread(target=keep_alive, args=(centre, token))
        beats.start()
        threads.append(beats)
        return Run(number, grid, token)

    yield start
    over.set()
    for thread in threads:
        thread.join()
    for grid in grids:
        grid.close()
