"""The ClientApp: it hands each message to the site's worker and its answer back."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site import load_site
from client.worker import ModelPool, SiteWorker
from common.errors import ConfigError, SchemaError
from common.protocol import Answer
from common.wire import answer_to_records, instruction_from_records

app = ClientApp()

SITES_FOLDER = "FEDCXR_SITES"
"""Environment variable of a simulation: a folder with one folder per site, each a site.toml."""


def site_file(context: Context) -> Path:
    """Return this node's site.toml: named in its node config, or the n-th of a simulation.

    Raises:
        ConfigError: if the node says neither.
    """
    if "site-file" in context.node_config:
        return Path(str(context.node_config["site-file"]))
    partition, folder = context.node_config.get("partition-id"), os.environ.get(SITES_FOLDER)
    if partition is None or not folder:
        raise ConfigError(
            "this node does not know its site",
            fix="start it with --node-config 'site-file=\"/path/to/site.toml\"'",
        )
    return sorted(Path(folder).glob("*/site.toml"))[int(partition)]


@cache
def _pool() -> ModelPool:
    return ModelPool()


@cache
def worker_for(file: Path) -> SiteWorker:
    """Return the process's worker for a site, started on first use."""
    return SiteWorker(load_site(file), _pool())


@app.query("enrol")
@app.train("round")
@app.train("local")
@app.evaluate("arm")
def answer(message: Message, context: Context) -> Message:
    """Relay one message; a message that is not ours is answered with a code, never an exception."""
    worker = worker_for(site_file(context))
    try:
        instruction = instruction_from_records(message.metadata.message_type, message.content)
        reply = worker.handle(instruction, context.run_config)
    except SchemaError as error:
        reply = Answer(worker.site.name, code=error.code)
    return Message(answer_to_records(reply), reply_to=message)
