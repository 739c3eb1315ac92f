"""The two engines: the same ServerApp and ClientApp, in this process or under Flower's on Ray."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.supercore.run import Run

from client.app import SITE_FILE, make_app
from client.app import app as client_app
from common.config import RunConfig
from common.files import write_atomic
from server.app import RUN_FOLDER
from server.app import app as server_app
from simulations.inline_grid import InlineGrid
from simulations.stacked.limits import check_stack
from simulations.workers import Machine, Share, limit_threads, size_workers

if TYPE_CHECKING:
    from simulations.stacked.meeting import Meeting

Engine = Literal["inline", "ray"]
RUN_ID = 1


def run_inline(
    config: RunConfig,
    files: Mapping[str, Path],
    folder: Path,
    tamper: Callable[[Message], Message | None] = lambda reply: reply,
    stack: int = 0,
) -> None:
    """Run the plan in this process, one site at a time; with ``stack``, train so many in one pass.

    Raises:
        ConfigError: if ``stack`` is given and the plan's sites cannot be trained in one pass.
    """
    flat = config.to_flat()
    contexts = {
        node: Context(RUN_ID, node, {SITE_FILE: str(file)}, RecordDict(), flat)
        for node, file in enumerate(files.values(), start=1)
    }
    os.environ[RUN_FOLDER] = str(folder)
    grid = InlineGrid(client_app, contexts, tamper, _meeting(config, stack))
    server_app(grid, Context(RUN_ID, 0, {}, RecordDict(), flat))


def _meeting(config: RunConfig, stack: int) -> Meeting | None:
    """Return where sites meet to train in one pass; nowhere with ``stack`` 0."""
    if not stack:
        return None
    check_stack(config)
    from simulations.stacked.meeting import Meeting

    return Meeting(stack)


def run_ray(
    config: RunConfig, files: Mapping[str, Path], folder: Path, threads: int = 0, gpus: float = 0.0
) -> Share:
    """Run the plan under Flower's simulation engine; RAY_ADDRESS makes it use a cluster.

    As many workers answer at once as the memory, cores and GPUs of the machines allow, by what one was
    measured to take; each holds the backbone once, and whatever it has read of a site. ``threads`` CPUs and
    ``gpus`` GPUs are reserved for each where they are given; a site then computes with as many threads, and
    ends in the same bits as in this process with as many. On a cluster the folders of sites and run must lie
    where every machine sees them. Returns what each worker was given.

    Raises:
        ConfigError: if no machine holds one worker.
        RunError: if the worker that was to be measured died.
    """
    import ray
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supercore.telemetry import EventType

    logging.getLogger("flwr").setLevel(logging.ERROR)
    paths = [str(file.resolve()) for file in files.values()]
    _start_ray()
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        share = size_workers(config, files, _machines(nodes), threads, gpus)
    except BaseException:
        ray.shutdown()
        raise

    def tell_site(message: Message, context: Context, call: ClientAppCallable) -> Message:
        file = paths[int(context.node_config["partition-id"])]
        context.node_config[SITE_FILE] = file
        if not threads:
            limit_threads(Path(file), share.threads)
        return call(message, context)

    os.environ[RUN_FOLDER] = str(folder)
    app = folder / "flower-app"
    flat = config.to_flat()
    components = {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    described = {"publisher": "fedcxr", "components": components, "config": flat}
    project = {"name": "fedcxr", "version": "0", "license": "Apache-2.0", "description": "a run"}
    content = {"project": project, "tool": {"flwr": {"app": described}}}
    write_atomic(app / "pyproject.toml", tomli_w.dumps(content).encode())
    run = Run.create_empty(RUN_ID)
    run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
    run.override_config = dict(flat)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 1, 1
    _run_simulation(
        num_supernodes=len(files),
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=make_app([tell_site]),
        server_app=server_app,
        server_app_context=Context(RUN_ID, 0, {}, RecordDict(), flat),
        backend_config={"client_resources": {"num_cpus": share.cores, "num_gpus": share.gpus}},
        app_dir=str(app),
        is_app=True,
        run=run,
    )
    return share


def _start_ray() -> None:
    """Start Ray, or reach the cluster that RAY_ADDRESS names; Flower's engine takes what it finds.

    Its processes come without what this one has added to its path, so they are told.
    """
    import ray

    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about what a later Ray will do
        ray.init(
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


def _machines(nodes: Sequence[Mapping[str, Any]]) -> list[Machine]:
    """Read what Ray says of its nodes; one that has gone offers nothing."""
    offered = [node["Resources"] for node in nodes if node.get("Alive", True) and node["Resources"]]
    return [Machine(int(o.get("CPU", 0)), float(o.get("GPU", 0)), int(o.get("memory", 0))) for o in offered]
