"""The ClientApp: it hands each message to the site's worker and its answer back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from client.site import load_site
from client.worker import ModelPool, SiteWorker
from common.errors import ConfigError, SchemaError
from common.protocol import MESSAGE_TYPES, Answer
from common.wire import answer_to_records, instruction_from_records


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
    return ModelPool()


@cache
def worker_for(file: Path) -> SiteWorker:
    """Return the process's worker for a site, started on first use."""
    return SiteWorker(load_site(file), _pool())


def answer(message: Message, context: Context) -> Message:
    """Relay one message; a message that is not ours is answered with a code, never an exception."""
    worker = worker_for(site_file(context))
    try:
        instruction = instruction_from_records(message.metadata.message_type, message.content)
        reply = worker.handle(instruction, context.run_config)
    except SchemaError as error:
        reply = Answer(worker.site.name, code=error.code)
    return Message(answer_to_records(reply), reply_to=message)


def make_app(mods: Sequence[Mod] = ()) -> ClientApp:
    """Build the app; a simulation adds a mod that tells each node its site."""
    built = ClientApp(mods=list(mods))
    for message_type in MESSAGE_TYPES.values():
        kind, _, action = message_type.partition(".")
        getattr(built, kind)(action)(answer)
    return built


app = make_app()
