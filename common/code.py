"""The digest of the code: both sides of a run must have the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path, PurePosixPath

HOUSE = Path(__file__).resolve().parents[1]
"""Folder the packages lie in."""

PACKAGES = ("client", "common", "server")
"""What travels in a bundle: the code both sides must share."""

ASIDE = PurePosixPath("server/monitor")
"""Only reads what a run leaves behind: a new page needs no hospital's new approval."""


def of_a_run(name: PurePosixPath) -> bool:
    """Whether a file, by its path in the house, is code that takes part in runs.

    >>> of_a_run(PurePosixPath("server/rounds.py")), of_a_run(PurePosixPath("server/monitor/app.py"))
    (True, False)
    """
    return name.parts[0] in PACKAGES and name.suffix == ".py" and not name.is_relative_to(ASIDE)


def sources() -> dict[str, Path]:
    """Return the code of runs as it is installed: its path in the house, in order -> the file."""
    files = (file for package in PACKAGES for file in sorted((HOUSE / package).rglob("*.py")))
    named = {file.relative_to(HOUSE).as_posix(): file for file in files}
    return {name: file for name, file in named.items() if of_a_run(PurePosixPath(name))}


@cache
def code_digest() -> str:
    """SHA-256 over the source of ``common``, ``client`` and ``server``, by relative path.

    Both sides of a run carry all three packages, so an old site and a new server notice.
    """
    digest = hashlib.sha256()
    for name, file in sources().items():
        digest.update(f"{name}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
