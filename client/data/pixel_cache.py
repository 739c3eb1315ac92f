"""Images decoded once: 8-bit pixels of a site in one memory-mapped file. Patient data; stays here.

Layout of a cache folder (0700, its files 0600), one per preprocessing::

    crop-224-refuse-v2/
      pixels-0007.u8    row i at offset i * 224 * 224
      rows-0007.jsonl   [i, path, size, mtime, facts ...], a line for each row that is done
      lock              held while one process looks and decodes; the others wait

A line is appended only after the pixels it vouches for are on disk: after a kill at any moment a
row is either vouched for and right, or decoded again; a torn last line is dropped. A row once
vouched for is never overwritten; a changed file or another table makes a new pair of files, which
takes over the rows that still hold. What left the table thereby leaves the cache.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.facts import BurnedIn, Facts
from client.data.transforms import Fit
from client.data.workers import shared_workers
from common.errors import DataError
from common.files import locked, sync_folder

_log = logging.getLogger(__name__)

VERSION = 2
"""Raised when decoding or resizing changes: old caches are then not read."""

_RETRIED = ("missing", "unsupported-syntax", "timeout")
"""Reasons that may mend themselves without the file changing: a mount, a codec, a busy machine."""
_CHUNK = 512
"""Images between two flushes to disk: what a kill costs at most."""

Progress = Callable[[int, int], None]
"""Called with the number of images read and the number to read."""


class _File(NamedTuple):
    """What tells one version of a file from another."""

    path: str
    size: int
    mtime_ns: int


class _Row(NamedTuple):
    """What is known of one row: the file it read, and what became of it."""

    file: _File
    facts: Facts

    def holds(self, now: _File) -> bool:
        return self.file == now and self.facts.reason not in _RETRIED


@dataclass(frozen=True)
class PixelCache:
    """Row i belongs to path i; rows that could not be read are black and not ``ok``."""

    pixels: NDArray[np.uint8]
    """``[rows, size, size]``, read-only, mapped from disk."""
    facts: tuple[Facts, ...]
    """What each file says about itself, and why it could not be read."""

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Tell which rows could be read."""
        return np.array([not fact.reason for fact in self.facts], dtype=bool)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a row could not be read; '' where it could."""
        return tuple(fact.reason for fact in self.facts)

    @classmethod
    def open(
        cls,
        folder: Path,
        paths: Sequence[str],
        root: Path,
        size: int,
        fit: Fit = "crop",
        burned_in: BurnedIn = "refuse",
        progress: Progress | None = None,
    ) -> PixelCache:
        """Return the pixels of these files, decoding those the cache does not hold as they are now.

        Raises:
            DataError: if the folder cannot be written or the disk is full.
        """
        store = _Store(folder / f"{fit}-{size}-{burned_in}-v{VERSION}", root, size, fit, burned_in)
        try:
            for level in (folder, store.folder):
                level.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.folder.chmod(0o700)
            with locked(store.folder / "lock"):
                number, rows = store.refresh([_stat(root, str(path)) for path in paths], progress)
                pixels = store.map(number, len(rows))
        except OSError as error:
            raise DataError(
                "the pixel cache cannot be written",
                found=error.strerror or type(error).__name__,
                fix=f"about {len(paths) * size * size // 2**20 + 1} MB are needed in data.cache of site.toml",
            ) from None
        return cls(pixels, tuple(row.facts for row in rows))


@dataclass(frozen=True)
class _Store:
    """The files of one cache folder; used only while the lock is held."""

    folder: Path
    root: Path
    size: int
    fit: Fit
    burned_in: BurnedIn

    @property
    def stride(self) -> int:
        return self.size * self.size

    def refresh(self, now: Sequence[_File], progress: Progress | None) -> tuple[int, list[_Row]]:
        """Bring the cache to the files as they are; returns the number of the pair and its rows."""
        number, old = self.read_rows(len(now))
        if not _in_place(old, now):
            number, old = self.take_over(number, old, now)
        rows = [was if was and was.holds(file) else None for was, file in zip(old, now, strict=True)]
        todo = [i for i, row in enumerate(rows) if row is None]
        if todo:
            self.decode(number, rows, now, todo, progress)
        return number, [row for row in rows if row is not None]

    def take_over(
        self, number: int, old: Sequence[_Row | None], now: Sequence[_File]
    ) -> tuple[int, list[_Row | None]]:
        """Start a new pair of files with the rows that still hold, in the order asked for."""
        where = {row.file.path: i for i, row in enumerate(old) if row}
        fresh = number + 1
        source = self.map(number, len(old))
        rows: list[_Row | None] = [None] * len(now)
        with self._writing(self.pixel_file(fresh)) as target:
            os.ftruncate(target, 0)
            os.ftruncate(target, len(now) * self.stride)
            for i, file in enumerate(now):
                was = old[where[file.path]] if file.path in where else None
                if was and was.holds(file):
                    rows[i] = was
                    if not was.facts.reason:
                        self._put(target, i, source[where[file.path]].tobytes())
        temporary = self.folder / "rows.tmp"
        with self._writing(temporary) as target:
            os.ftruncate(target, 0)
            head = json.dumps({"rows": len(now)}) + "\n"
            _write(target, head.encode() + b"".join(_line(i, row) for i, row in enumerate(rows) if row))
        os.replace(temporary, self.row_file(fresh))
        sync_folder(self.folder)
        for stale in (*self.folder.glob("pixels-*.u8"), *self.folder.glob("rows-*.jsonl")):
            if stale not in (self.pixel_file(fresh), self.row_file(fresh)):
                stale.unlink()
        return fresh, rows

    def decode(
        self,
        number: int,
        rows: list[_Row | None],
        now: Sequence[_File],
        todo: Sequence[int],
        progress: Progress | None,
    ) -> None:
        """Read the images of these rows, write them in place, then vouch for them."""
        workers = shared_workers()
        paths = (self.root / now[i].path for i in todo)
        done: list[int] = []
        pixel_file, row_file = self.pixel_file(number), self.row_file(number)
        with self._writing(pixel_file) as target, self._writing(row_file) as journal:
            os.lseek(journal, 0, os.SEEK_END)
            results = workers.read(paths, self.size, self.fit, self.burned_in)
            for count, (i, (facts, pixels)) in enumerate(zip(todo, results, strict=True), 1):
                if pixels is not None:
                    self._put(target, i, pixels.tobytes())
                rows[i] = _Row(now[i], facts)
                done.append(i)
                if len(done) == _CHUNK or count == len(todo):
                    os.fsync(target)
                    _write(journal, b"".join(_line(k, row) for k in done if (row := rows[k])))
                    os.fsync(journal)
                    done.clear()
                    _log.info("decoded %d of %d images", count, len(todo))
                if progress:
                    progress(count, len(todo))

    @contextmanager
    def _writing(self, file: Path) -> Iterator[int]:
        target = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield target
            os.fsync(target)
        finally:
            os.close(target)

    def _put(self, target: int, row: int, data: bytes) -> None:
        # pwrite, not a writable map: on a full disk a map dies of SIGBUS, this raises ENOSPC.
        rest, offset = memoryview(data), row * self.stride
        while rest:
            written = os.pwrite(target, rest, offset)
            rest, offset = rest[written:], offset + written

    def pixel_file(self, number: int) -> Path:
        return self.folder / f"pixels-{number:04d}.u8"

    def row_file(self, number: int) -> Path:
        return self.folder / f"rows-{number:04d}.jsonl"

    def map(self, number: int, rows: int) -> NDArray[np.uint8]:
        shape = (rows, self.size, self.size)
        if not rows:
            return np.zeros(shape, dtype=np.uint8)
        return np.memmap(self.pixel_file(number), np.uint8, "r", shape=shape)

    def read_rows(self, wanted: int) -> tuple[int, list[_Row | None]]:
        """Read the newest pair; an absent or damaged one is an empty cache."""
        numbers = sorted(int(file.stem[5:]) for file in self.folder.glob("rows-*.jsonl"))
        if not numbers:
            return 0, []
        number = numbers[-1]
        try:
            whole = self.row_file(number).read_bytes()
            lines = whole[: whole.rfind(b"\n") + 1].splitlines()
            rows: list[_Row | None] = [None] * int(json.loads(lines[0])["rows"])
            for line in lines[1:]:
                i, path, size, mtime, *facts = json.loads(line)
                rows[i] = _Row(_File(path, size, mtime), Facts(*facts))
            if self.pixel_file(number).stat().st_size < len(rows) * self.stride:
                raise ValueError("the pixel file is shorter than the rows say")
        except (ValueError, KeyError, TypeError, IndexError, FileNotFoundError) as error:
            _log.warning("the pixel cache is damaged (%s) and is made again", type(error).__name__)
            return number, []
        if len(rows) == wanted and not whole.endswith(b"\n"):
            os.truncate(self.row_file(number), whole.rfind(b"\n") + 1)
        return number, rows


def _line(i: int, row: _Row) -> bytes:
    return json.dumps([i, *row.file, *row.facts]).encode() + b"\n"


def _write(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


def _in_place(old: Sequence[_Row | None], now: Sequence[_File]) -> bool:
    """Tell whether every row vouched for is still right where it stands."""
    return len(old) == len(now) and all(
        was is None or bool(was.facts.reason) or was.holds(file) for was, file in zip(old, now, strict=True)
    )


def _stat(root: Path, path: str) -> _File:
    try:
        status = (root / path).stat()
    except (OSError, ValueError):
        return _File(path, -1, -1)
    return _File(path, status.st_size, status.st_mtime_ns)
