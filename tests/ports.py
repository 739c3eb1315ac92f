"""A port for a server that a test starts."""

from __future__ import annotations

import random
import socket

_UNTRIED = iter(random.SystemRandom().sample(range(20_000, 32_000), 12_000))
"""Ports that systems do not give to connections going out, so that none takes one before the server does."""


def free_port() -> int:
    """Return a TCP port of this machine that nobody uses now, and never the same one again."""
    for port in _UNTRIED:
        with socket.socket() as probe:
            if _binds(probe, port):
                return port
    raise RuntimeError("every port has been tried")


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
