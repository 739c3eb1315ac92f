"""A DICOM file that a test wrote: changed, and decoded or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.data.image import inspect

Make = Callable[..., Path]

Draw = Callable[..., np.ndarray]


def decode(path: Path) -> np.ndarray:
    facts, pixels = inspect(path)
    assert facts.reason == ""
    assert pixels is not None
    return pixels


def insert(path: Path, extra: bytes) -> Path:
    """Put elements at the start of the data set."""
    whole = path.read_bytes()
    start = whole.index(b"\x08\x00\x16\x00UI")
    path.write_bytes(whole[:start] + extra + whole[start:])
    return path


def refusal(path: Path) -> str:
    facts, pixels = inspect(path)
    assert pixels is None
    return facts.reason
