"""The ClientApp: it hands each message to the site's worker in this process, and its answer back.

A simulation runs this, and so does Flower's own SuperNode. A hospital's node does not: it asks the
worker that is resident there (`client.node.seam`), without a process for every message.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

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
    """Answer one message; one that is not ours is answered with a code, never an exception."""
    return Message(answer_to_records(_work(message, context)), reply_to=message)


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
