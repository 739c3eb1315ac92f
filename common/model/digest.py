"""Digests of what two sides must share: the frozen base, and the code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over the source of ``common``, ``client`` and ``server``, by relative path.

    Both sides of a run carry all three packages, so an old site and a new server notice.
    """
    house = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in ("client", "common", "server"):
        for source in sorted((house / package).rglob("*.py")):
            digest.update(f"{source.relative_to(house).as_posix()}\0".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()
