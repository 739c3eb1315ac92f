"""The two engines: the same ServerApp and ClientApp, in this process or under Flower's on Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

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

Engine = Literal["inline", "ray"]
RUN_ID = 1


def run_inline(
    config: RunConfig,
    files: Mapping[str, Path],
    folder: Path,
    tamper: Callable[[Message], Message | None] = lambda reply: reply,
) -> None:
    """Run the plan in this process, one site at a time."""
    flat = config.to_flat()
    contexts = {
        node: Context(RUN_ID, node, {SITE_FILE: str(file)}, RecordDict(), flat)
        for node, file in enumerate(files.values(), start=1)
    }
    os.environ[RUN_FOLDER] = str(folder)
    server_app(InlineGrid(client_app, contexts, tamper), Context(RUN_ID, 0, {}, RecordDict(), flat))


def run_ray(config: RunConfig, files: Mapping[str, Path], folder: Path, threads: int, gpus: float) -> None:
    """Run the plan under Flower's simulation engine; RAY_ADDRESS makes it use a cluster.

    ``threads`` CPUs and ``gpus`` GPUs are reserved per site, so as many sites train at once as the
    cluster holds. On a cluster the run folder must lie where every machine sees it.
    """
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend  # noqa: F401
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supercore.telemetry import EventType

    logging.getLogger("flwr").setLevel(logging.ERROR)
    paths = [str(file.resolve()) for file in files.values()]

    def tell_site(message: Message, context: Context, call: ClientAppCallable) -> Message:
        context.node_config[SITE_FILE] = paths[int(context.node_config["partition-id"])]
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
        backend_config={
            "init_args": {"logging_level": "ERROR", "log_to_driver": False},
            "client_resources": {"num_cpus": threads, "num_gpus": gpus},
        },
        app_dir=str(app),
        is_app=True,
        run=run,
    )
