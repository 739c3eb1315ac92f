"""A real centre process over TLS, sites with Flower's own client, and a ServerApp's side of a run."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from server.centre.folder import CentreFolder
from server.centre.provision import init_centre
from tests.ports import free_port
from tests.server.centre.gateway.centre_process import CentreProcess
from tests.server.centre.gateway.server_app import AdminToken, Run, tiny_fab


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
            centre.admin, False, centre.ca, interceptors=[AdminToken(centre.token)]
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
