"""The worker's process behind its socket, with a site of phantoms, and what asks it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from client.node import frames
from client.node.answers import KeptAnswers
from client.node.frames import BrokenFrame
from client.node.relay import ask_worker, ping
from client.place import SiteFolder
from common.code import code_digest
from common.config import RunConfig
from common.errors import WorkerError
from common.model.build import build_model
from common.protocol import Answer, Instruction
from simulations.make_site import make_site

STEPS = 60
CONFIG = RunConfig.build(
    {
        "data": {"findings": ("effusion",), "image_size": 32},
        "model": {"backbone": "timm:test_vit"},
        "pet": {"method": "head"},
        "train": {"batch_size": 8, "steps": STEPS},
        "rounds": {"count": 2},
    }
)


class Worker:
    """``python -m client.node.resident FOLDER``."""

    def __init__(self, root: Path) -> None:
        self.folder = SiteFolder.of(root)
        self.log = root / "worker.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "client.node.resident", str(self.folder.root)],
                stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def wait_for(self, condition: Callable[[], object], seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except WorkerError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def instruction() -> Instruction:
    model = build_model(CONFIG)
    return Instruction(
        stage="train",
        plan_digest=CONFIG.plan_digest(model.base_digest, code_digest()),
        code_digest=code_digest(),
        base_digest=model.base_digest,
        round=1,
        adapter=model.schema.pack(model.initial_state().tensors),
    )


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    # Deeper than the 107 bytes that the name of a socket may have.
    root = tmp_path_factory.mktemp("a-hospital-with-a-long-name-" * 4) / "north"
    make_site(root, "north", studies=40, seed=1, size=32)
    running = Worker(root)
    running.start()
    yield running
    running.kill()


def test_the_worker_answers_and_says_what_it_does(worker: Worker, instruction: Instruction) -> None:
    # A relay that comes before the worker is ready waits for it.
    asked = Instruction("enrol", instruction.plan_digest, instruction.code_digest, instruction.base_digest)
    answer = ask_worker(worker.folder.worker_socket, asked, CONFIG.to_flat(), "north")
    assert answer.code == "" and answer.metrics["owned"] == [1], worker.log.read_text()
    pong = ping(worker.folder.worker_socket)
    assert worker.process and pong["pid"] == worker.process.pid
    assert (pong["busy"], pong["site"]) == ("", "north")
    assert worker.folder.worker_socket.stat().st_mode & 0o777 == 0o600


def test_a_worker_killed_over_an_instruction_is_asked_again(worker: Worker, instruction: Instruction) -> None:
    worker.kill()
    worker.start()
    worker.wait_for(lambda: ping(worker.folder.worker_socket))
    found: list[Answer] = []

    def ask(round_: int = 1, sequence: int = 1) -> Answer:
        told = dataclasses.replace(instruction, round=round_, run="7", site="north", sequence=sequence)
        return ask_worker(worker.folder.worker_socket, told, CONFIG.to_flat(), "north")

    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    worker.wait_for(lambda: ping(worker.folder.worker_socket)["busy"] == "train")
    worker.kill()
    worker.start()
    thread.join(60)
    (first,) = found
    assert first.code == "" and first.update is not None, worker.log.read_text()

    # The same question, in a resumed run: the same bytes, and nothing is trained.
    before = worker.log.read_text()
    again = ask(sequence=9)
    assert again.update is not None and again.update.tobytes() == first.update.tobytes()
    assert again.metrics == first.metrics
    assert "was trained before" in worker.log.read_text().removeprefix(before)

    kept = KeptAnswers(worker.folder.outbox / "updates")
    assert [number for _, number, _ in kept.waiting()] == [1]
    # The centre has committed round 1: its update is no longer kept.
    told = dataclasses.replace(instruction, round=2, committed=1)
    assert ask_worker(worker.folder.worker_socket, told, CONFIG.to_flat(), "north").code == ""
    assert [number for _, number, _ in kept.waiting()] == [2]


def test_rubbish_on_the_socket_harms_nobody(worker: Worker) -> None:
    worker.wait_for(lambda: ping(worker.folder.worker_socket))
    for rubbish in (b"", b"\xff" * 4, b"\x00\x00\x00\x02{}", b'\x00\x00\x00\x09{"a": nan', os.urandom(300)):
        with frames.dial(worker.folder.worker_socket) as line:
            line.sendall(rubbish)
    assert ping(worker.folder.worker_socket)["busy"] == ""


def test_without_a_worker_the_answer_is_a_code(tmp_path: Path, instruction: Instruction) -> None:
    started = time.monotonic()
    answer = ask_worker(tmp_path / "worker.sock", instruction, {}, "north", wait=0.3)
    assert answer == Answer("north", code="E_WORKER")
    assert 0.5 < time.monotonic() - started < 5
    with pytest.raises(WorkerError, match="does not answer"):
        ping(tmp_path / "worker.sock")


@pytest.mark.parametrize("dies", ["before it takes it", "at once", "in the middle", "never answers"])
def test_a_worker_that_always_dies_is_not_asked_for_ever(
    tmp_path: Path, instruction: Instruction, dies
) -> None:
    path, asked = tmp_path / "worker.sock", []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    held: list[socket.socket] = []

    def work() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            asked.append(1)
            if dies == "never answers":
                held.append(line)
                continue
            with line.makefile("rb") as stream:
                frames.read(stream)
            if dies != "before it takes it":
                line.sendall(frames.pack({"kind": "taken"}, {}))
            if dies == "in the middle":
                line.sendall(frames.answer(Answer("north", update=np.ones(9, np.float32)))[:-4])
            line.close()

    thread = threading.Thread(target=work)
    thread.start()
    answer = ask_worker(path, instruction, {}, "north", wait=0.5, patience=2)
    assert answer == Answer("north", code="E_WORKER")
    if dies == "before it takes it":
        assert len(asked) > 3
    else:
        assert len(asked) == (1 if dies == "never answers" else 2)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for line in held:
        line.close()


def test_a_frame_carries_arrays_as_they_are(instruction: Instruction) -> None:
    residual = {"a.left": np.eye(2, 3, dtype=np.float32)}
    told = dataclasses.replace(instruction, residual=residual, scaling=np.array([1.0, np.nan]))
    facts, arrays = frames.read(io.BytesIO(frames.question(told, {"a.b": 1})))
    back, run_config = frames.read_question(facts, arrays)
    assert back.signed_bytes() == told.signed_bytes() and run_config == {"a.b": 1}
    for value in (np.float16([1, np.inf]), np.zeros((0,), np.float32), None):
        given = Answer("north", "", value, {"a": 1, "b": [0.5, 1.0]})
        read = frames.read_answer(*frames.read(io.BytesIO(frames.answer(given))))
        assert (read.site, read.metrics) == ("north", given.metrics)
        assert read.update is value if value is None else read.update.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    "header",
    [
        {"arrays": [["a", "object", [1]]]},
        {"arrays": [["a", "float32", [-1]]]},
        {"arrays": [["a", "float32", [10**12]]]},
        {"arrays": [["a", "float32", [8]]]},
        {"arrays": 3},
        {},
        [],
    ],
)
def test_a_frame_that_is_none_is_refused(header: object) -> None:
    data = json.dumps(header).encode()
    with pytest.raises(BrokenFrame):
        frames.read(io.BytesIO(len(data).to_bytes(4, "big") + data + b"0000"))


def test_no_other_kind_of_array_is_handed_over() -> None:
    with pytest.raises(WorkerError, match="cannot be handed over"):
        frames.answer(Answer("north", update=np.array(["a"])))  # type: ignore[arg-type]


def test_the_node_runs_beside_its_worker_without_torch() -> None:
    code = """
import sys
import client.node.supernode
print(*[name for name in ("torch", "timm", "pandas", "PIL", "uvicorn", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
