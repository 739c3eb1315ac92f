"""Hand an instruction to the site's worker process and bring back its answer.

Model, data and caches are the worker's: nothing here imports torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from client.node import frames
from client.node.frames import BrokenFrame
from common.errors import WorkerError
from common.protocol import Answer, Instruction

WAIT = 60.0
"""Seconds a worker may take to start again."""
TRIES = 2
"""How often an instruction is handed to a worker that dies of it, or while it works on it."""
_POLL = 0.1
_log = logging.getLogger(__name__)


def ask_worker(
    socket: Path,
    instruction: Instruction,
    run_config: Mapping[str, Any],
    site: str,
    wait: float = WAIT,
    patience: float | None = None,
) -> Answer:
    """Return the worker's answer, or one with the code E_WORKER.

    A worker that is just being restarted is waited for; one that dies over the instruction is asked
    once more. ``patience`` is how many seconds an answer may take; None: as long as it takes.
    """
    until = None if patience is None else time.monotonic() + patience
    data = frames.question(instruction, run_config)
    for attempt in range(TRIES):
        try:
            with _handed(socket, data, wait, until) as stream:
                return frames.read_answer(*frames.read(stream))
        except (OSError, BrokenFrame) as error:
            _log.warning("the worker did not answer (%s), try %d of %d", error, attempt + 1, TRIES)
            if isinstance(error, TimeoutError):
                break
    return Answer(site, code=WorkerError.code)


def ping(socket: Path, timeout: float = 5.0) -> dict[str, Any]:
    """Return what the worker is doing: ``busy`` (a stage or empty), ``since`` and ``pid``.

    Raises:
        WorkerError: if it does not answer in time.
    """
    try:
        with frames.dial(socket) as line:
            line.settimeout(timeout)
            line.sendall(frames.pack({"kind": "ping"}, {}))
            with line.makefile("rb") as stream:
                facts, _ = frames.read(stream)
                return facts
    except (OSError, BrokenFrame) as error:
        raise WorkerError(
            "the worker does not answer",
            found=str(error),
            fix="see worker.log; fedcxr-site start restarts it",
        ) from None


@contextmanager
def _handed(socket: Path, data: bytes, wait: float, until: float | None) -> Iterator[BinaryIO]:
    """Hand over a question, to a worker that is there or will be; yields where the answer comes.

    Only what the worker says it has taken counts: a worker that is just dying still accepts.
    """
    give_up = time.monotonic() + wait
    while True:
        try:
            with frames.dial(socket) as line:
                if until is not None:
                    line.settimeout(max(0.1, until - time.monotonic()))
                line.sendall(data)
                with line.makefile("rb") as stream:
                    frames.read(stream)
                    give_up = 0.0
                    yield stream
            return
        except (OSError, BrokenFrame) as error:
            if time.monotonic() >= give_up or isinstance(error, TimeoutError):
                raise
            time.sleep(_POLL)
