"""Rows of numbers computed once per picture or report, on disk. Patient data; stays at the site.

Layout of the folder (0700, its files 0600), four files per computation, named by a digest of what it is::

    1f0c...9a.data   rows of one length, float16 or float32; row i belongs to the i-th digest
    1f0c...9a.rows   digests of what went in, 16 bytes each
    1f0c...9a.json   what was computed, in words
    1f0c...9a.lock   held while one process looks and computes; the others wait

A digest is appended only after its row is on disk: after a kill at any moment a row is either vouched for and
right, or computed again. A row once vouched for is never overwritten, so whoever has mapped it may read on,
also after the files have been removed. The computations used longest ago go when the site's limit is reached,
or the disk fills up. One that holds a picture the site no longer has goes as a whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import locked, write_atomic

_log = logging.getLogger(__name__)

VERSION = 2
"""Raised when what is computed, or how it lies on disk, changes: what lies there is then not read."""
RESERVE = 2**30
"""Bytes of the disk that are left free."""
DIGEST = 16
"""Bytes of a digest."""
_CHUNK = 2**26
"""Bytes between two flushes to disk: what a kill costs at most."""

Digests = NDArray[np.bytes_]
"""``[n]`` of dtype S16."""
_NOTHING: Digests = np.zeros(0, dtype=f"S{DIGEST}")
Rows = NDArray[np.int64]
Compute = Callable[[Rows], Iterator[NDArray[Any]]]
"""Takes positions among the digests asked for and yields their rows, some at a time, in that order."""


def digests_of(rows: Iterable[Any]) -> Digests:
    """Digest each of some contiguous arrays.

    >>> a, b, c = digests_of([np.zeros(3), np.ones(3), np.zeros(3)])
    >>> a == c != b
    True
    """
    each = [hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=DIGEST).digest() for row in rows]
    return np.array(each, dtype=_NOTHING.dtype)


@dataclass(frozen=True)
class Place:
    """Where rows may be kept, and how much of the disk they may take."""

    folder: Path
    limit: int
    """Bytes of all computations in the folder together."""


class Memory:
    """Rows kept in memory, for as long as this process lives."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: Digests = _NOTHING
        self._data: NDArray[Any] = np.zeros(0)

    def find(self, digests: Digests) -> Rows:
        """Return where the rows of these digests are, -1 where they are not."""
        return _find(self._known, digests)

    def add(self, digests: Digests, compute: Compute) -> bool:
        """Compute what is not there yet; False where that takes more memory than there may be."""
        missing = _missing(self._known, digests)
        if not len(missing):
            return True
        parts = compute(missing)
        first = next(parts)
        if (len(self._known) + len(missing)) * first[0].nbytes > self._limit:
            return False
        had = [self._data] if len(self._known) else []
        self._data = np.concatenate([*had, first, *parts])
        self._known = np.concatenate([self._known, digests[missing]])
        return True

    def take(self, rows: Rows) -> NDArray[Any]:
        """Copy rows out."""
        return self._data.take(rows, axis=0)


class Disk:
    """Rows of one computation on disk, shared with every other process that wants the same."""

    def __init__(self, place: Place, what: Mapping[str, Any], dtype: np.dtype[Any], present: Digests) -> None:
        """Look what is there; ``present`` are the digests of everything the site has.

        Raises:
            OSError: if the folder cannot be written.
        """
        self._place, self._dtype = place, dtype
        self._what = {**what, "dtype": str(dtype), "version": VERSION}
        name = hashlib.sha256(json.dumps(self._what, sort_keys=True).encode()).hexdigest()[:32]
        self._files = _Files(place.folder, name, dtype)
        place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.folder.chmod(0o700)
        with locked(self._files.lock):
            known, shape = self._files.read()
            if len(known) and not np.isin(known, present).all():
                self._files.remove()
                known = _NOTHING
            self._map(known, shape)

    def find(self, digests: Digests) -> Rows:
        """Return where the rows of these digests are, -1 where they are not."""
        return _find(self._known, digests)

    def add(self, digests: Digests, compute: Compute) -> bool:
        """Compute what is not there yet; False where there is no room for it.

        Raises:
            OSError: if it cannot be written all the same; what was there stays.
        """
        with locked(self._files.lock):
            known, shape = self._files.read()
            missing = _missing(known, digests)
            if len(missing):
                parts = compute(missing)
                first = next(parts)
                shape = first.shape[1:]
                if not self._reserve(len(known), len(missing), first):
                    return False
                self._append(len(known), digests[missing], chain([first], parts))
                known = np.concatenate([known, digests[missing]])
            self._map(known, shape)
        return True

    def take(self, rows: Rows) -> NDArray[Any]:
        """Copy rows out."""
        return self._data.take(rows, axis=0)

    def _map(self, known: Digests, shape: tuple[int, ...]) -> None:
        """Map what is vouched for, and note that it is in use."""
        self._known, whole = known, (len(known), *shape)
        if not len(known):
            self._data: NDArray[Any] = np.zeros(whole, dtype=self._dtype)
            return
        os.utime(self._files.rows)
        self._data = np.memmap(self._files.data, self._dtype, "r", shape=whole).view(np.ndarray)

    def _reserve(self, known: int, more: int, like: NDArray[Any]) -> bool:
        """Take the disk space of what comes, at the cost of what was used longest ago."""
        folder, stride = self._place.folder, like[0].nbytes
        with locked(folder / "room.lock"):
            others = sorted(_others(folder, self._files.data))
            own, yielding = (known + more) * stride, sum(size for _, _, size in others)
            needed, taken = more * stride + RESERVE, own + yielding
            if own > self._place.limit or shutil.disk_usage(folder).free + yielding < needed:
                return False
            while taken > self._place.limit or shutil.disk_usage(folder).free < needed:
                if not others:
                    return False
                _, data, size = others.pop(0)
                if _evict(_Files(folder, data.stem, self._dtype)):
                    taken -= size
            told = {**self._what, "shape": like.shape[1:]}
            write_atomic(self._files.told, json.dumps(told, sort_keys=True).encode())
            with _open(self._files.data) as target:
                try:
                    os.posix_fallocate(target, known * stride, more * stride)
                except OSError:
                    os.ftruncate(target, known * stride)
                    raise
        return True

    def _append(self, known: int, digests: Digests, parts: Iterator[NDArray[Any]]) -> None:
        count, done, stride = 0, 0, 0
        with _open(self._files.data) as target, _open(self._files.rows) as journal:
            os.ftruncate(journal, known * DIGEST)
            try:
                for part in parts:
                    stride = part[0].nbytes
                    _write(target, part, (known + count) * stride)
                    count += len(part)
                    if (count - done) * stride >= _CHUNK or count == len(digests):
                        os.fsync(target)
                        _write(journal, digests[done:count], (known + done) * DIGEST)
                        os.fsync(journal)
                        done = count
            finally:
                os.ftruncate(target, (known + done) * stride)


@dataclass(frozen=True)
class _Files:
    """The files of one computation."""

    folder: Path
    name: str
    dtype: np.dtype[Any]

    @property
    def data(self) -> Path:
        return self.folder / f"{self.name}.data"

    @property
    def rows(self) -> Path:
        return self.folder / f"{self.name}.rows"

    @property
    def told(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.name}.lock"

    def read(self) -> tuple[Digests, tuple[int, ...]]:
        """Return the digests that are vouched for, and a row's shape; what is damaged is removed."""
        try:
            whole = self.rows.read_bytes()
            shape = tuple(int(side) for side in json.loads(self.told.read_bytes())["shape"])
            count = len(whole) // DIGEST
            if self.data.stat().st_size < count * int(np.prod(shape)) * self.dtype.itemsize:
                raise ValueError("the data are shorter than the digests say")
        except FileNotFoundError:
            self.remove()
            return _NOTHING, ()
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("activations on disk are damaged (%s): computed again", type(error).__name__)
            self.remove()
            return _NOTHING, ()
        return np.frombuffer(whole[: count * DIGEST], dtype=_NOTHING.dtype), shape

    def remove(self) -> None:
        # What vouches goes first: without it the rest is nothing.
        for file in (self.rows, self.data, self.told):
            file.unlink(missing_ok=True)


def _others(folder: Path, own: Path) -> Iterator[tuple[float, Path, int]]:
    """Yield every other computation: when it was used last, its data, its bytes on disk."""
    for data in folder.glob("*.data"):
        if data != own:
            try:
                size, used = data.stat().st_size, data.with_suffix(".rows").stat().st_mtime
            except FileNotFoundError:
                size, used = (data.stat().st_size if data.is_file() else 0), 0.0
            yield used, data, size


def _evict(files: _Files) -> bool:
    """Remove a computation, unless a process is at it."""
    try:
        with locked(files.lock, wait=False):
            files.remove()
    except BlockingIOError:
        return False
    return True


def _find(known: Digests, digests: Digests) -> Rows:
    if not len(known):
        return np.full(len(digests), -1, dtype=np.int64)
    order = np.argsort(known)
    at = order[np.searchsorted(known, digests, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[at] == digests, at, -1)


def _missing(known: Digests, digests: Digests) -> Rows:
    """Return the first position of every digest that is not known."""
    _, first = np.unique(digests, return_index=True)
    first = np.sort(first)
    return np.asarray(first[_find(known, digests[first]) < 0], dtype=np.int64)


@contextmanager
def _open(file: Path) -> Iterator[int]:
    target = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield target
    finally:
        os.close(target)


def _write(target: int, data: NDArray[Any], offset: int) -> None:
    # pwrite, not a writable map: on a full disk a map dies of SIGBUS, this raises ENOSPC.
    rest = memoryview(data.view(np.uint8).reshape(-1).data)
    while rest:
        written = os.pwrite(target, rest, offset)
        rest, offset = rest[written:], offset + written
