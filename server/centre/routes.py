"""Which of Flower's routes are served where, and what each needs; what is not listed is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from google.protobuf.message import Message  # type: ignore[import-untyped]

HEALTH = "/health"
SMALL = 4_096
"""Bytes of a request that holds numbers only."""
TREES = 2_000_000
"""Bytes of a message with its tree of objects, whose contents travel apart."""


@dataclass(frozen=True)
class SiteRoute:
    """A Fleet route that a site may call."""

    path: str
    request: type[Message]
    cap: int | None = SMALL
    """Bytes of the largest body; None for the centre's ``max_body``."""
    writes: bool = False
    """Whether it fills the disk."""
    routine: bool = False
    """Called every few seconds: not in the log when it went well."""


def _fleet(name: str, cap: int | None = SMALL, *, writes: bool = False, routine: bool = False) -> SiteRoute:
    path = f"/v1/fleet/{name}"
    return SiteRoute(path, PROTOBUF_REQUEST_TYPES[("POST", path)], cap, writes, routine)


SITE_ROUTES = {
    route.path: route
    for route in (
        _fleet("activate-node"),
        _fleet("deactivate-node"),
        _fleet("send-node-heartbeat", routine=True),
        _fleet("pull-messages", routine=True),
        _fleet("push-messages", TREES, writes=True),
        _fleet("get-run"),
        _fleet("get-fab"),
        _fleet("push-object", None, writes=True),
        _fleet("pull-object"),
        _fleet("confirm-message-received"),
    )
}
"""Path -> route of the public listener; registration belongs to the registry, not to a site."""

Need = Literal["token", "task", "superexec"]

_RUNTIME = {
    "send-task-heartbeat",
    "pull-task-input",
    "push-task-output",
    "push-object",
    "pull-object",
    "confirm-message-received",
    "push-logs",
    "push-messages",
    "pull-messages",
    "get-nodes",
}
"""What a ServerApp and its superexec need; not tasks of tasks, agents, automations or connectors."""

ADMIN_CAP = 64_000_000
"""Bytes of the largest body on the admin listener: a bundle, or a part of an adapter."""

RUNTIME_WRITES = {f"/v1/runtime/{name}" for name in ("push-object", "push-messages")}
"""Runtime routes that wait while the disk is short."""


def admin_need(method: str, path: str) -> Need | None:
    """Return which credential a route of the admin listener needs, or None if it is not served.

    Control and the descriptions need the centre's own token, since Flower asks for none. Runtime
    needs what Flower asks for; routes for agents, automations and connectors are not served.
    """
    if method == "GET" and path in ("/docs", "/docs/oauth2-redirect", "/openapi.json"):
        return "token"
    if (method, path) not in PROTOBUF_REQUEST_TYPES:
        return None
    area, _, name = path.removeprefix("/v1/").partition("/")
    if area == "control":
        return "token"
    if area == "runtime" and name == "acquire-task":
        return "superexec"
    return "task" if area == "runtime" and name in _RUNTIME else None
