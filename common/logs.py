"""A log file that is rotated by size, between lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


class RotatingLog:
    """Appends lines to ``path``; older lines are in ``path.1``, ``path.2`` and so on.

    What cannot be written, because the disk is full, is lost and counted: whoever logs goes on.
    """

    def __init__(self, path: Path, size: int = 10_000_000, keep: int = 3) -> None:
        self.path = path
        self.size = size
        self.keep = keep
        self.lost = 0
        self._stream: BinaryIO | None = None

    def write(self, line: bytes) -> None:
        """Append a line, in a new file if this one is full."""
        try:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                self._stream = os.fdopen(descriptor, "ab", buffering=0)
            if self._stream.tell() and self._stream.tell() + len(line) > self.size:
                self._rotate()
                self.write(line)
                return
            self._stream.write(line)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Close the file; another `write` opens it again."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _rotate(self) -> None:
        self.close()
        for number in range(self.keep - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        if self.keep < 2:
            self.path.unlink(missing_ok=True)
