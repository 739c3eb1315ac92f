"""The digest of the code: both sides of a run must have the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
"""Folder the packages lie in."""


@cache
def code_digest() -> str:
    """SHA-256 over the source of ``common``, ``client`` and ``server``, by relative path.

    Both sides of a run carry all three packages, so an old site and a new server notice.
    """
    digest = hashlib.sha256()
    for package in ("client", "common", "server"):
        for source in sorted((HOUSE / package).rglob("*.py")):
            digest.update(f"{source.relative_to(HOUSE).as_posix()}\0".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()
