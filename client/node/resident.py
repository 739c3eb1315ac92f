"""The resident worker: ``python -m client.node.resident SITE_FOLDER``.

It holds the site's base, data and caches between messages and listens on a local socket that only
its owner can open. One instruction is worked on at a time, in the main thread; further ones wait.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Any

from client.node import frames
from client.node.answers import KeptAnswers
from client.node.frames import BrokenFrame
from client.place import SiteFolder
from client.site import load_site
from client.worker import SiteWorker
from common.console import fail_clearly
from common.protocol import ROUND_STAGES, Answer, Instruction

_HEADER_TIME = 30.0
"""Seconds a question may take to arrive."""
_log = logging.getLogger(__name__)


@dataclass
class _Job:
    instruction: Instruction
    run_config: dict[str, Any]
    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b""


class Resident:
    """A worker behind a socket."""

    def __init__(self, worker: SiteWorker, answers: KeptAnswers, path: Path) -> None:
        self.worker = worker
        self.answers = answers
        self.path = path
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._busy = ""
        self._since = time.time()

    def serve(self) -> None:
        """Listen, and work until the process is ended."""
        listener = _listen(self.path)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        _log.info("worker of %s is ready", self.worker.site.name)
        while True:
            job = self._jobs.get()
            self._busy, self._since = job.instruction.stage, time.time()
            job.answer = frames.answer(self.reply(job.instruction, job.run_config))
            self._busy, self._since = "", time.time()
            job.done.set()

    def reply(self, instruction: Instruction, run_config: dict[str, Any]) -> Answer:
        """Answer, from what is kept where the same was asked before."""
        self.answers.forget(instruction.plan_digest, instruction.committed)
        if instruction.stage in ROUND_STAGES:
            kept = self.answers.find(instruction)
            if kept is not None:
                _log.info("round %d was trained before: the same update again", instruction.round)
                return kept
        before = time.monotonic()
        answer = self.worker.handle(instruction, run_config)
        took = time.monotonic() - before
        _log.info("%s of round %d: %s in %.3f s", instruction.stage, instruction.round,
                  answer.code or "done", took)  # fmt: skip
        self.answers.keep(instruction, answer)
        return answer

    def _accept(self, listener: socket) -> None:
        while True:
            line, _ = listener.accept()
            threading.Thread(target=self._talk, args=(line,), daemon=True).start()

    def _talk(self, line: socket) -> None:
        """Read one question and answer it; whoever asked may be gone by then."""
        with line:
            try:
                line.settimeout(_HEADER_TIME)
                with line.makefile("rb") as stream:
                    facts, arrays = frames.read(stream)
                if facts.get("kind") == "ping":
                    now = {"kind": "pong", "pid": os.getpid(), "busy": self._busy, "since": self._since}
                    line.sendall(frames.pack({**now, "site": self.worker.site.name}, {}))
                    return
                job = _Job(*frames.read_question(facts, arrays))
                line.sendall(frames.pack({"kind": "taken"}, {}))
                self._jobs.put(job)
                job.done.wait()
                line.sendall(job.answer)
            except (OSError, BrokenFrame) as error:
                _log.warning("a question could not be taken or answered: %s", error)


def main(place: str) -> None:
    """Run the worker of a site's folder until it is ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    folder = SiteFolder.of(Path(place))
    site = load_site(folder.settings)
    if site.device.threads:
        import torch

        torch.set_num_threads(site.device.threads)
    Resident(SiteWorker(site), KeptAnswers(folder.outbox / "updates"), folder.worker_socket).serve()


def _listen(path: Path) -> socket:
    """Listen on a socket that only its owner can open, in place of one a dead worker left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    listener = socket(AF_UNIX, SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with frames.short(new) as name:
            listener.bind(name)
    finally:
        os.umask(before)
    listener.listen(16)
    new.replace(path)
    return listener


if __name__ == "__main__":
    with fail_clearly():
        main(sys.argv[1])
