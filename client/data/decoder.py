"""What runs in a decoding worker: one file after the other, in a process its parent may lose.

A worker meets hostile files, so it holds nothing worth taking, and nothing it says is trusted:
see `client.data.workers`, which starts it and reads its replies.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import sys
import warnings
from pathlib import Path

from client.data.decoder_process import LENGTH
from client.data.image import examine
from client.data.transforms import standardise

_IDLE = 5.0
"""Seconds between two looks whether the parent is still there."""
_FILES = 64


def serve(handle: int, memory: int, seconds: float) -> None:
    """Answer requests until the parent closes the connection or dies."""
    with socket.socket(fileno=handle) as connection:
        _warm_up()
        _confine(memory)
        connection.sendall(LENGTH.pack(0))  # ready
        connection.settimeout(_IDLE)
        parent = os.getppid()
        while head := _receive(connection, LENGTH.size, parent):
            body = _receive(connection, LENGTH.unpack(head)[0], parent)
            if not body:
                return
            _limit_time(seconds)
            reply = answer(**json.loads(body))
            connection.settimeout(None)  # the parent reads when it comes to it
            connection.sendall(reply)
            connection.settimeout(_IDLE)


def answer(index: int, path: str, size: int, fit: str, burned_in: str) -> bytes:
    """Inspect one file: index and facts in JSON, and ``size * size`` pixels unless they hold a reason."""
    facts, picture = examine(Path(path), burned_in)  # type: ignore[arg-type]
    pixels = b""
    if picture is not None:
        try:
            pixels = standardise(picture, size, fit).tobytes()  # type: ignore[arg-type]
        except MemoryError:
            facts = facts._replace(reason="memory")
    head = json.dumps([index, *facts]).encode()
    return LENGTH.pack(len(head)) + head + pixels


def _warm_up() -> None:
    """Import what is otherwise imported at the first file: later there is neither room nor time."""
    import imagehash  # noqa: F401
    import scipy.fftpack  # noqa: F401
    from PIL import Image

    Image.preinit()


def _confine(memory: int) -> None:
    # Resident memory is within the address space, so this bounds both.
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),  # a core would hold patients
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _FILES),
    ):
        resource.setrlimit(kind, (limit, limit))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(1000)


def _limit_time(seconds: float) -> None:
    """Die of a file that takes too long even if the parent is no longer there to see to it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _receive(connection: socket.socket, size: int, parent: int) -> bytes:
    """Read exactly so many bytes; b"" at the end, or once the parent is gone."""
    data = b""
    while len(data) < size:
        try:
            part = connection.recv(size - len(data))
        except TimeoutError:
            # Whoever was forked from the parent may hold the connection open after its death.
            if os.getppid() != parent:
                return b""
            continue
        if not part:
            return b""
        data += part
    return data
