"""Images decoded once: 8-bit pixels of a site in one memory-mapped file. Patient data; stays here.

Layout of a cache folder (0700, its files 0600), one per preprocessing::

    crop-224-v1/
      index.json       rows in table order: path, size, mtime, reason, view; names the pixel file
      pixels-0007.u8   row i at offset i * 224 * 224
      lock             held while one process looks and decodes; the others wait

The index is replaced atomically, and only after the pixels it vouches for are on disk: after a
kill at any moment a row is either vouched for and right, or decoded again. A row once vouched
for is never overwritten; a changed file or another table makes a new pixel file, which takes
over the rows that still hold. What left the table thereby leaves the cache.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.image import read_image
from client.data.reasons import RefusedImage
from client.data.transforms import Fit, standardise
from common.errors import DataError

_log = logging.getLogger(__name__)

VERSION = 1
"""Raised when decoding or resizing changes: old caches are then not read."""

_RETRIED = ("missing", "unsupported-syntax")
"""Reasons that may mend themselves without the file changing: a mount, an installed codec."""
_CHUNK = 1024
"""Images between two writes of the index: what a kill costs at most."""


class _Row(NamedTuple):
    """What the index knows of one row: the file it read, and what became of it."""

    path: str
    size: int
    mtime_ns: int
    reason: str
    view: str

    def holds(self, now: _Row) -> bool:
        return self[:3] == now[:3] and self.reason not in _RETRIED


@dataclass(frozen=True)
class PixelCache:
    """Row i belongs to row i of the table; rows that could not be read are black and not ``ok``."""

    pixels: NDArray[np.uint8]
    """``[rows, size, size]``, read-only, mapped from disk."""
    ok: NDArray[np.bool_]
    reasons: tuple[str, ...]
    """Why a row could not be read; '' where it could."""
    views: NDArray[np.str_]
    """The view a DICOM file gives itself, or ''."""

    @classmethod
    def open(cls, folder: Path, paths: Sequence[str], root: Path, size: int, fit: Fit = "crop") -> PixelCache:
        """Return the pixels of these files, decoding those the cache does not hold as they are now.

        Raises:
            DataError: if the folder cannot be written or the disk is full.
        """
        store = _Store(folder / f"{fit}-{size}-v{VERSION}", root, size, fit)
        try:
            for level in (folder, store.folder):
                level.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.folder.chmod(0o700)
            with _locked(store.folder / "lock"):
                file, rows = store.refresh([_stat(root, str(path)) for path in paths])
                pixels = store.map(file, len(rows))
        except OSError as error:
            raise DataError(
                "the pixel cache cannot be written",
                found=error.strerror or type(error).__name__,
                fix=f"about {len(paths) * size * size // 2**20 + 1} MB are needed in data.cache of site.toml",
            ) from None
        reasons = tuple(row.reason for row in rows)
        return cls(
            pixels=pixels,
            ok=np.array([not reason for reason in reasons], dtype=bool),
            reasons=reasons,
            views=np.array([row.view for row in rows], dtype=np.str_),
        )


@dataclass(frozen=True)
class _Store:
    """The files of one cache folder; used only while the lock is held."""

    folder: Path
    root: Path
    size: int
    fit: Fit

    @property
    def stride(self) -> int:
        return self.size * self.size

    def refresh(self, now: Sequence[_Row]) -> tuple[str, list[_Row]]:
        """Bring the cache to the files as they are; returns the pixel file and its rows."""
        file, old = self.read_index()
        if not _in_place(old, now):
            file, old = self.take_over(file, old, now)
        rows = [was if was and was.holds(row) else None for was, row in zip(old, now, strict=True)]
        todo = [i for i, row in enumerate(rows) if row is None]
        for start in range(0, len(todo), _CHUNK):
            self.decode(file, rows, now, todo[start : start + _CHUNK])
            _log.info("decoded %d of %d images", min(start + _CHUNK, len(todo)), len(todo))
        return file, [row for row in rows if row is not None]

    def take_over(
        self, file: str, old: Sequence[_Row | None], now: Sequence[_Row]
    ) -> tuple[str, list[_Row | None]]:
        """Start a new pixel file with the rows that still hold, in the order of the table."""
        where = {row.path: i for i, row in enumerate(old) if row}
        fresh = f"pixels-{int(file[7:11]) + 1 if file else 1:04d}.u8"
        source = self.map(file, len(old))
        rows: list[_Row | None] = [None] * len(now)
        with self._writing(fresh) as target:
            os.ftruncate(target, 0)
            os.ftruncate(target, len(now) * self.stride)
            for i, row in enumerate(now):
                was = old[where[row.path]] if row.path in where else None
                if was and was.holds(row):
                    rows[i] = was
                    if not was.reason:
                        self._put(target, i, source[where[row.path]])
        self.write_index(fresh, rows)
        for stale in self.folder.glob("pixels-*.u8"):
            if stale.name != fresh:
                stale.unlink()
        return fresh, rows

    def decode(self, file: str, rows: list[_Row | None], now: Sequence[_Row], todo: Sequence[int]) -> None:
        """Read the images of these rows, write them in place, then vouch for them."""
        workers = min(8, os.cpu_count() or 1)
        with self._writing(file) as target, ThreadPoolExecutor(workers) as pool:
            done = pool.map(lambda i: self._decoded(now[i]), todo)
            for i, (pixels, row) in zip(todo, done, strict=True):
                if pixels is not None:
                    self._put(target, i, pixels)
                rows[i] = row
        self.write_index(file, rows)

    def _decoded(self, row: _Row) -> tuple[NDArray[np.uint8] | None, _Row]:
        if row.size < 0:
            return None, row._replace(reason="missing")
        try:
            pixels, view = read_image(self.root / row.path)
        except RefusedImage as refused:
            return None, row._replace(reason=refused.reason)
        return standardise(pixels, self.size, self.fit), row._replace(view=view)

    @contextmanager
    def _writing(self, file: str) -> Iterator[int]:
        target = os.open(self.folder / file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield target
            os.fsync(target)
        finally:
            os.close(target)

    def _put(self, target: int, row: int, pixels: NDArray[np.uint8]) -> None:
        # pwrite, not a writable map: on a full disk a map dies of SIGBUS, this raises ENOSPC.
        data = memoryview(pixels.tobytes())
        offset = row * self.stride
        while data:
            written = os.pwrite(target, data, offset)
            data, offset = data[written:], offset + written

    def map(self, file: str, rows: int) -> NDArray[np.uint8]:
        shape = (rows, self.size, self.size)
        if not rows:
            return np.zeros(shape, dtype=np.uint8)
        return np.memmap(self.folder / file, np.uint8, "r", shape=shape)

    def read_index(self) -> tuple[str, list[_Row | None]]:
        """Read the index; an absent or damaged one is an empty cache."""
        try:
            index = json.loads((self.folder / "index.json").read_bytes())
            rows = [_Row(*row) if row else None for row in index["rows"]]
            file = str(index["pixels"])
            if (self.folder / file).stat().st_size < len(rows) * self.stride:
                raise ValueError("the pixel file is shorter than the index says")
        except FileNotFoundError:
            return "", []
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("the pixel cache is damaged (%s) and is made again", type(error).__name__)
            return "", []
        return file, rows

    def write_index(self, file: str, rows: Sequence[_Row | None]) -> None:
        """Replace the index at once: whoever reads it finds the old one or the new one."""
        with self._writing("index.tmp") as target:
            data = memoryview(json.dumps({"pixels": file, "rows": rows}).encode())
            os.ftruncate(target, 0)
            while data:
                data = data[os.write(target, data) :]
        os.replace(self.folder / "index.tmp", self.folder / "index.json")
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _in_place(old: Sequence[_Row | None], now: Sequence[_Row]) -> bool:
    """Tell whether every row vouched for is still right where it stands."""
    return len(old) == len(now) and all(
        was is None or was.reason or was.holds(row) for was, row in zip(old, now, strict=True)
    )


def _stat(root: Path, path: str) -> _Row:
    try:
        status = (root / path).stat()
    except OSError:
        return _Row(path, -1, -1, "", "")
    return _Row(path, status.st_size, status.st_mtime_ns, "", "")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
