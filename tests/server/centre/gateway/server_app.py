"""A ServerApp's side of a run."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from tests.server.centre.gateway.flower_site import Site


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


class AdminToken:
    """Signs in at Control as the centre's own commands do."""

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
