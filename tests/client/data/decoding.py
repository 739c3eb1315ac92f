"""Files read by workers: what they should give, and workers that do harm at a telling name."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import numpy as np

from client.data.decoder_process import MAIN
from client.data.facts import Facts
from client.data.image import examine
from client.data.transforms import standardise
from client.data.workers import Workers

SIZE = 32

ROOT = Path(__file__).resolve().parents[3]

STUNTS = """
import client.data.image as image, os, signal, time
read = image._bytes

def perform(path):
    if "hang" in path.name:
        time.sleep(60)
    if "spin" in path.name:
        while True:
            pass
    if "crash" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "memory" in path.name:
        bytearray(2 ** 30)
    return read(path)

image._bytes = perform
"""
"""What a worker does for a file of a telling name, before it reads it."""


def stunts(body: str) -> str:
    """Make a worker's main program that patches its decoder first."""
    path = "import sys\nsys.path = sys.argv[4:]\n"
    return path + textwrap.dedent(body) + MAIN


def sound(path: Path) -> tuple[Facts, np.ndarray | None]:
    facts, picture = examine(path)
    return facts, None if picture is None else standardise(picture, SIZE, "crop")


def read(workers: Workers, paths: list[Path]) -> list[tuple[Facts, np.ndarray | None]]:
    return list(workers.read(paths, SIZE, "crop", "refuse"))


def same(got: list[tuple[Facts, np.ndarray | None]], paths: list[Path], reasons: list[str]) -> None:
    """Check that files have these reasons, and those without one what they have without workers."""
    assert [facts.reason for facts, _ in got] == reasons
    for (facts, pixels), path, reason in zip(got, paths, reasons, strict=True):
        if not reason:
            expected, values = sound(path)
            assert facts == expected
            np.testing.assert_array_equal(pixels, values)


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Tell whether a process ends in time, leaving no zombie."""
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()
