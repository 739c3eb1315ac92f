"""The ClientApp: it hands each message to the site's worker and its answer back.

At a hospital the worker is a process of its own behind a socket, and this only relays: Flower starts
a process for every message, so torch is not imported here. A simulation holds the worker in-process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from client.node.relay import ask_worker
from common.errors import ConfigError, SchemaError
from common.protocol import MESSAGE_TYPES, Answer
from common.wire import answer_to_records, instruction_from_records

if TYPE_CHECKING:
    from client.worker import ModelPool, SiteWorker


def site_file(context: Context) -> Path:
    """Return this node's site.toml, as its node config names it.

    Raises:
        ConfigError: if the node config does not.
    """
    if SITE_FILE not in context.node_config:
        raise ConfigError(
            "this node does not know its site",
            fix=f"start it with --node-config '{SITE_FILE}=\"/path/to/site.toml\"'",
        )
    return Path(str(context.node_config[SITE_FILE]))


SITE_FILE = "site-file"
"""Key of the node config: where this node's site.toml is."""
WORKER_SOCKET = "worker-socket"
"""Key of the node config: where this node's worker process listens."""
SITE = "site"
"""Key of the node config: this node's site."""


@cache
def _pool() -> ModelPool:
    from client.worker import ModelPool

    return ModelPool()


@cache
def worker_for(file: Path) -> SiteWorker:
    """Return the process's worker for a site, started on first use."""
    from client.site import load_site
    from client.worker import SiteWorker

    return SiteWorker(load_site(file), _pool())


def answer(message: Message, context: Context) -> Message:
    """Relay one message; a message that is not ours is answered with a code, never an exception."""
    reply = _relay(message, context) if WORKER_SOCKET in context.node_config else _work(message, context)
    return Message(answer_to_records(reply), reply_to=message)


def _relay(message: Message, context: Context) -> Answer:
    """Ask the worker process, for no longer than the centre waits."""
    site = str(context.node_config[SITE])
    try:
        instruction = instruction_from_records(message.metadata.message_type, message.content)
    except SchemaError as error:
        return Answer(site, code=error.code)
    patience = message.metadata.created_at + message.metadata.ttl - time.time()
    socket = Path(str(context.node_config[WORKER_SOCKET]))
    return ask_worker(socket, instruction, context.run_config, site, patience=patience)


def _work(message: Message, context: Context) -> Answer:
    """Ask the worker in this process."""
    worker = worker_for(site_file(context))
    try:
        instruction = instruction_from_records(message.metadata.message_type, message.content)
    except SchemaError as error:
        return Answer(worker.site.name, code=error.code)
    return worker.handle(instruction, context.run_config)


def make_app(mods: Sequence[Mod] = ()) -> ClientApp:
    """Build the app; a simulation adds a mod that tells each node its site."""
    built = ClientApp(mods=list(mods))
    for message_type in MESSAGE_TYPES.values():
        kind, _, action = message_type.partition(".")
        getattr(built, kind)(action)(answer)
    return built


app = make_app()
