"""Images decoded in worker processes, with limits on their memory and time.

Decoders of hostile files hang, crash and may be taken over. Here that costs the one file: its
reason is ``timeout``, ``crashed`` or ``memory``, and a fresh worker takes the rest. A reply is JSON and
raw pixels, checked against what was asked; nothing a worker sends is unpickled.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import selectors
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Self

from client.data.decoder_process import MAIN, BrokenReply, Limits, Request, Result, Worker
from client.data.facts import Facts
from client.data.reasons import Reason
from common.errors import DataError

if TYPE_CHECKING:
    from client.data.facts import BurnedIn
    from client.data.transforms import Fit

_log = logging.getLogger(__name__)

MAX_WORKERS = 8
_QUEUE = 2
"""Requests a worker holds: one it works on, and one so that it never waits for the next."""
_AHEAD = 32
"""Results, for each worker, that may wait for an earlier file."""
_FALSE_STARTS = 3
"""Workers in a row that do not start before we give up: it is not a file's fault then."""


class Workers:
    """Decoding processes, started when there is something to decode, and kept for the next call."""

    def __init__(self, number: int, limits: Limits | None = None, main: str = MAIN) -> None:
        self.number = number
        self.limits = limits or Limits()
        self._main = main
        self._lock = Lock()
        self._idle: list[Worker] = []
        self._started: list[Worker] = []
        self.owner = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, paths: Iterable[Path], size: int, fit: Fit, burned_in: BurnedIn) -> Iterator[Result]:
        """Yield facts and ``[size, size]`` pixels, or None, of each file, in the order of the paths.

        Paths are taken as they are needed. Calls from several threads do not wait for each other.

        Raises:
            DataError: if no worker can be started, or they are closed meanwhile.
        """
        reading = _Reading(self, _requests(paths, size, fit, burned_in))
        try:
            yield from reading.results()
        finally:
            reading.end()

    @property
    def pids(self) -> list[int]:
        """The processes there are now."""
        with self._lock:
            return [worker.process.pid for worker in self._started]

    def close(self) -> None:
        """End all workers. They start again if asked again."""
        if self.owner == os.getpid():  # in a fork of ours they are not ours
            with self._lock:
                started, self._started = self._started, []
                idle, self._idle = self._idle, []
            for worker in started:
                worker.kill()
            for worker in idle:
                worker.connection.close()  # of the others whoever uses them does, and sees their end

    def take(self) -> Worker:
        """Return an idle worker, or a new one.

        Raises:
            DataError: if the system starts no process.
        """
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                self._drop(worker)
            try:
                worker = Worker(self.limits, self._main)
            except OSError as error:
                raise _cannot_start(type(error).__name__) from None
            self._started.append(worker)
            return worker

    def give(self, worker: Worker) -> None:
        """Keep a worker for the next call, unless it is busy or one too many."""
        with self._lock:
            if worker in self._started and not worker.queue and len(self._idle) < self.number:
                self._idle.append(worker)
            else:
                self._drop(worker)

    def lose(self, worker: Worker) -> int | None:
        """End a worker that is of no more use; returns what it died of.

        Raises:
            DataError: if it is dead because of `close`.
        """
        with self._lock:
            closed = worker not in self._started
            died = self._drop(worker)
        if closed:
            raise DataError("the decoding workers were closed while in use")
        return died

    def _drop(self, worker: Worker) -> int | None:
        if worker in self._started:
            self._started.remove(worker)
        worker.connection.close()
        return worker.kill()


def shared_workers() -> Workers:
    """Return this process's workers, one for each of its CPUs and eight at most."""
    global _shared
    with _sharing:
        if _shared is None or _shared.owner != os.getpid():
            _shared = Workers(min(MAX_WORKERS, len(os.sched_getaffinity(0))))
            atexit.register(_shared.close)
        return _shared


_shared: Workers | None = None
_sharing = Lock()


class _Reading:
    """One call of `Workers.read`: who does what, and what is done and waits for its turn."""

    def __init__(self, workers: Workers, requests: Iterator[Request]) -> None:
        self.workers = workers
        self.requests = requests
        self.crew: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.done: dict[int, Result] = {}
        self.asked = self.yielded = self.false_starts = 0
        self.exhausted = False

    def results(self) -> Iterator[Result]:
        while True:
            self.hand_out()
            if self.yielded in self.done:
                result = self.done.pop(self.yielded)
                self.yielded += 1
                since = time.monotonic()
                yield result
                paused = time.monotonic() - since
                for worker in self.crew:
                    worker.since += paused  # nobody listened: it may have answered long ago
            elif self.exhausted and self.yielded == self.asked:
                return
            self.listen()

    def hand_out(self) -> None:
        """Give every worker something to do, then every worker something to do next."""
        for depth in range(_QUEUE):
            for place in range(self.workers.number):
                if place < len(self.crew) and len(self.crew[place].queue) > depth:
                    continue
                if self.exhausted or self.asked - self.yielded >= _AHEAD * self.workers.number:
                    return
                request = next(self.requests, None)
                if request is None:
                    self.exhausted = True
                    return
                self.asked += 1
                if place >= len(self.crew):
                    self.join(self.workers.take(), [request])
                else:
                    self.crew[place].ask(request)

    def join(self, worker: Worker, requests: Iterable[Request]) -> None:
        self.crew.append(worker)
        self.selector.register(worker.connection, selectors.EVENT_READ, worker)
        for request in requests:
            worker.ask(request)

    def leave(self, worker: Worker) -> None:
        self.crew.remove(worker)
        self.selector.unregister(worker.connection)

    def listen(self) -> None:
        """Take the replies that are here, or wait for the one whose turn it is, and see who is overdue."""
        timeout = 0.0
        if self.yielded not in self.done and any(worker.queue for worker in self.crew):
            timeout = max(0.0, min(worker.deadline for worker in self.crew) - time.monotonic())
        for key, _ in self.selector.select(timeout):
            worker: Worker = key.data
            try:
                for request, result in worker.receive():
                    if result[0].reason == "memory":
                        self.renew(worker, request, result)
                        break
                    self.done[request.number] = result
            except BrokenReply:
                self.replace(worker, "crashed")
        now = time.monotonic()
        for worker in [worker for worker in self.crew if worker.deadline <= now]:
            self.replace(worker, "timeout")

    def renew(self, worker: Worker, request: Request, result: Result) -> None:
        """Replace a worker that ran out of memory; only a fresh one can tell whose fault it was."""
        if worker.answered > 1:
            worker.queue.appendleft(request)
        else:
            self.done[request.number] = result
        self.replace(worker)

    def replace(self, worker: Worker, reason: Reason | None = None) -> None:
        """End a worker and hand its requests to another, all but the one that is to blame.

        Raises:
            DataError: if workers do not even start.
        """
        self.leave(worker)
        died = self.workers.lose(worker)
        _log.warning("a decoding worker is replaced (%s)", reason or "memory")
        self.false_starts = 0 if worker.ready else self.false_starts + 1
        if self.false_starts == _FALSE_STARTS:
            raise _cannot_start(f"exit status {died}")
        if reason == "crashed" and died == -signal.SIGXCPU:
            reason = "timeout"
        # After an earlier file the damage may have been that file's, or a kill from outside.
        blamed = reason == "timeout" or (reason == "crashed" and not worker.answered)
        if blamed and worker.ready and worker.queue:
            self.done[worker.queue.popleft().number] = (Facts(reason=reason or ""), None)
        if worker.queue:
            self.join(self.workers.take(), worker.queue)

    def end(self) -> None:
        for worker in self.crew:
            self.workers.give(worker)
        self.selector.close()


def _requests(paths: Iterable[Path], size: int, fit: Fit, burned_in: BurnedIn) -> Iterator[Request]:
    for i, path in enumerate(paths):
        asked = {"index": i, "path": str(path.absolute()), "size": size, "fit": fit, "burned_in": burned_in}
        yield Request(i, json.dumps(asked).encode(), size * size)


def _cannot_start(found: str) -> DataError:
    return DataError(
        "the decoding workers do not start",
        found=found,
        fix="run python -c 'import client.data.decoder' and see what it says",
    )
