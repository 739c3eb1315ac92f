"""One decoding worker, as seen by the process that started it.

Workers are started with the interpreter and not by `multiprocessing`: that would import the main
module again, whatever it is, and share a fork server with whoever else has one.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.facts import Facts
from client.data.reasons import CAUSES

LENGTH = Struct(">I")
"""Bytes of JSON that follow: frames requests, and replies but for their pixels. 0: ready."""

_START = 120.0
"""Seconds a worker may take to import what it needs, on the busiest of machines."""
_MAX_TEXT = 64
"""Characters of a fact; `client.data.dicom_header` cuts them to as many."""
_MAX_HEAD = 16_384
"""Bytes of JSON in a reply: eleven facts, every character escaped."""
_ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
"""What a worker sees of the environment, which may hold keys."""

MAIN = """
import sys
handle, memory, seconds, *sys.path = sys.argv[1:]
from client.data.decoder import serve
serve(int(handle), int(memory), float(seconds))
"""

Result = tuple[Facts, NDArray[np.uint8] | None]


class Limits(NamedTuple):
    """What one worker may take."""

    memory: int = 1_000_000_000
    """Bytes of address space, libraries included; its resident memory stays below."""
    seconds: float = 20.0
    """For one file, by the clock."""


class Request(NamedTuple):
    """One file to read."""

    number: int
    body: bytes
    pixels: int
    """Bytes of pixels in the reply, unless it gives a reason."""


class BrokenReply(Exception):  # noqa: N818  (a reply, of which there may be many)
    """A worker died, or said what no sound worker says."""


class Worker:
    """One process, and the requests it has not answered."""

    def __init__(self, limits: Limits, main: str = MAIN) -> None:
        self.limits = limits
        self.queue: deque[Request] = deque()
        self.ready = False
        self.answered = 0
        self.since = time.monotonic()
        self.connection, theirs = socket.socketpair()
        self._buffer = bytearray()
        python = [sys.executable, "-I", "-S", "-B", "-c", main]
        arguments = [str(theirs.fileno()), str(limits.memory), str(limits.seconds)]
        kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [*python, *arguments, str(_ROOT), *map(os.path.abspath, sys.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # C libraries print what they find in a file
                    pass_fds=[theirs.fileno()],
                    env=kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                    cwd="/",
                    start_new_session=True,
                )
        except OSError:
            self.connection.close()
            raise
        self.connection.setblocking(False)

    @property
    def deadline(self) -> float:
        """When it has taken too long over what it does."""
        if not self.ready:
            return self.since + _START
        return self.since + self.limits.seconds if self.queue else math.inf

    def ask(self, request: Request) -> None:
        """Send a request, to be done after those before it."""
        if self.ready and not self.queue:
            self.since = time.monotonic()
        self.queue.append(request)
        with suppress(OSError):  # it is dead, or as good as: reading tells
            self.connection.sendall(LENGTH.pack(len(request.body)) + request.body)

    def receive(self) -> Iterator[tuple[Request, Result]]:
        """Yield the replies that are here.

        Raises:
            BrokenReply: if there will be no more, or this one is not sound.
        """
        try:
            data = self.connection.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise BrokenReply
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
            if not self.ready:
                if end > LENGTH.size:
                    raise BrokenReply
                self.ready, self.since = True, time.monotonic()
                del self._buffer[:end]
                continue
            if not self.queue or end > LENGTH.size + _MAX_HEAD:
                raise BrokenReply
            if len(self._buffer) < end:
                return
            request = self.queue[0]
            facts = check_head(bytes(self._buffer[LENGTH.size : end]), request.number)
            last = end + (0 if facts.reason else request.pixels)
            if len(self._buffer) < last:
                return
            pixels = None if facts.reason else np.frombuffer(bytes(self._buffer[end:last]), dtype=np.uint8)
            del self._buffer[:last]
            self.queue.popleft()
            self.answered += 1
            self.since = time.monotonic()
            side = math.isqrt(request.pixels)
            yield request, (facts, None if pixels is None else pixels.reshape(side, side))

    def kill(self) -> int | None:
        """End the process; returns what it died of, None if it cannot die yet (a dead network disk)."""
        self.process.kill()
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None


def check_head(head: bytes, index: int) -> Facts:
    """Return the facts of a reply to this request.

    Raises:
        BrokenReply: if it answers another, or the facts are not what `Facts` says.
    """
    try:
        answered, *found = json.loads(head.decode("ascii"))
    except (ValueError, TypeError, RecursionError):
        raise BrokenReply from None
    if answered != index or len(found) != len(Facts._fields):
        raise BrokenReply
    if not all(isinstance(text, str) and len(text) <= _MAX_TEXT and text.isprintable() for text in found):
        raise BrokenReply
    facts = Facts(*found)
    hashes = all(re.fullmatch("([0-9a-f]{64})?", text) for text in (facts.sha256, facts.phash))
    if not hashes or (facts.reason and facts.reason not in CAUSES):
        raise BrokenReply
    return facts
