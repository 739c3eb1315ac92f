"""What the node and the worker say to each other: a line of JSON and raw arrays, sizes bounded.

A frame is the length of its header (4 bytes, big-endian), the header in JSON, and the bytes of the
arrays the header lists with their type and shape. Nothing is unpickled. The same bytes, in a file,
are an answer that is kept.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.errors import WorkerError
from common.protocol import SINGLE_ARRAYS, Answer, Instruction

MAX_HEADER = 4_000_000
MAX_ARRAYS = 4_000_000_000
"""Bytes of all arrays of a frame."""
_TYPES = ("float16", "float32", "float64", "uint8")
_LENGTH = struct.Struct(">I")

Arrays = Mapping[str, NDArray[Any]]


class BrokenFrame(Exception):  # noqa: N818  (it is not an error of a user's, and never reaches one)
    """The other side went away or does not speak this."""


def pack(facts: Mapping[str, Any], arrays: Arrays) -> bytes:
    """Return a frame.

    Raises:
        WorkerError: if an array is of a type that no frame carries.
    """
    wrong = sorted({str(a.dtype) for a in arrays.values()} - set(_TYPES))
    if wrong:
        raise WorkerError("an array cannot be handed over", found=", ".join(wrong))
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({**facts, "arrays": listed}).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *(a.tobytes() for a in arrays.values())))


def read(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a frame.

    Raises:
        BrokenFrame: if it ends too early, is larger than allowed or is not a frame.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > MAX_HEADER:
        raise BrokenFrame("the header is too large")
    try:
        facts = json.loads(_exactly(stream, length))
        listed = [(str(name), str(kind), tuple(map(int, shape))) for name, kind, shape in facts.pop("arrays")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenFrame("the header is not one") from None
    if any(kind not in _TYPES or min(shape, default=0) < 0 for _, kind, shape in listed):
        raise BrokenFrame("an array is of no known type")
    sizes = [math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in listed]
    if sum(sizes) > MAX_ARRAYS:
        raise BrokenFrame("the arrays are too large")
    arrays = {
        name: np.frombuffer(bytearray(_exactly(stream, size)), dtype=kind).reshape(shape)
        for (name, kind, shape), size in zip(listed, sizes, strict=True)
    }
    return facts, arrays


def question(instruction: Instruction, run_config: Mapping[str, Any]) -> bytes:
    """Return an instruction as a frame."""
    facts = {"kind": "ask", "instruction": instruction.fields(), "run-config": dict(run_config)}
    return pack(facts, instruction.arrays())


def read_question(facts: Mapping[str, Any], arrays: Arrays) -> tuple[Instruction, dict[str, Any]]:
    """Read what ``question`` wrote.

    Raises:
        BrokenFrame: if a field is missing or unknown.
    """
    residual = {k.removeprefix("residual:"): v for k, v in arrays.items() if k.startswith("residual:")}
    try:
        fields = dict(facts["instruction"])
        single: dict[str, Any] = {name: arrays.get(name) for name in SINGLE_ARRAYS}
        instruction = Instruction(**fields, **single, residual=residual)
        return instruction, dict(facts["run-config"])
    except (KeyError, TypeError, ValueError):
        raise BrokenFrame("a question is not one") from None


def answer(given: Answer, **also: Any) -> bytes:
    """Return an answer as a frame."""
    facts = {"kind": "answer", "site": given.site, "code": given.code, "metrics": dict(given.metrics)}
    return pack({**facts, **also}, {} if given.update is None else {"update": given.update})


def read_answer(facts: Mapping[str, Any], arrays: Arrays) -> Answer:
    """Read what ``answer`` wrote.

    Raises:
        BrokenFrame: if a field is missing.
    """
    try:
        return Answer(str(facts["site"]), str(facts["code"]), arrays.get("update"), dict(facts["metrics"]))
    except (KeyError, TypeError, ValueError):
        raise BrokenFrame("an answer is not one") from None


@contextmanager
def short(path: Path) -> Iterator[str]:
    """Yield a name of a socket that the kernel takes, whose limit is 107 bytes, however long the path."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def dial(path: Path) -> socket.socket:
    """Connect to a worker's socket.

    Raises:
        OSError: if nobody listens there.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short(path) as name:
            line.connect(name)
    except BaseException:
        line.close()
        raise
    return line


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if data is None or len(data) < size:
        raise BrokenFrame("it ends too early")
    return data
