"""A ledger's file, opened for reading only, while a run may be writing it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from common.errors import RunError

_PATIENCE = 5.0
"""Seconds a read waits while somebody changes the file's layout; writers of rows never make it wait."""
_CACHE_KIB = 1024
_NO_LOG = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)

Values = tuple[object, ...]


class LedgerFile:
    """The file and what is new in it; one that is not there yet reads as empty.

    Safe to use from several threads, while another process writes to it or replaces it.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            RunError: if what lies there cannot be read, or there is no such folder.
        """
        self.path = path
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[object, ...] | None = None
        """What identifies the open file; of one that nobody writes, also its age and size."""
        self._immutable = False
        self._data_version = 0
        self._revision = 0
        self._depth = 0
        if not path.parent.is_dir():
            raise RunError(f"there is no run in {path.parent.name}", fix="name the folder of a run")
        with self._lock:
            self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = self._file = None

    def revision(self) -> int:
        """Return a number that grows whenever something was written; cheap to ask for."""
        with self._lock:
            if self._replaced():
                self.close()
                self.forget()
                self._revision += 1
            if self._db is None and not self._connect():
                return self._revision
            rows = self.rows("PRAGMA data_version")
            version = int(rows[0][0]) if rows else 0
            if version != self._data_version:
                self._data_version = version
                self._revision += 1
            return self._revision

    def forget(self) -> None:
        """Drop what was learnt from a file that is no longer there."""

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep what is read within to one moment, and other threads waiting."""
        with self._lock:
            self._depth += 1
            try:
                if self._depth == 1 and (self._db is not None or self._connect()):
                    assert self._db is not None  # noqa: S101  (for the type checker)
                    self._db.execute("BEGIN")
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._db is not None and self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def rows(self, query: str, values: Values | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        """Return what a query finds; nothing where there is no such table yet.

        Raises:
            RunError: if the file cannot be read.
        """
        with self._lock:
            if self._db is None and not self._connect():
                return []
            assert self._db is not None  # noqa: S101  (for the type checker)
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.DatabaseError as error:
                if "no such table" in str(error):
                    return []
                self.close()
                raise self._unreadable(error) from None

    def _connect(self) -> bool:
        """Open the file if it is there."""
        if not self.path.is_file():
            return False
        self._data_version, self._immutable = -1, False
        uri = f"file:{quote(str(self.path.resolve()))}?mode=ro"
        try:
            try:
                self._db = self._open(uri)
            except sqlite3.OperationalError as error:
                # In a folder that we cannot write, a log that nobody has open cannot be opened either.
                if error.sqlite_errorcode & 0xFF not in _NO_LOG or self._log_in_use():
                    raise
                self._immutable = True
                self._db = self._open(f"{uri}&immutable=1")
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from None
        self._file = self._identity()
        return True

    def _log_in_use(self) -> bool:
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size > 0
        except OSError:
            return False

    def _identity(self) -> tuple[object, ...] | None:
        try:
            there = self.path.stat()
        except OSError:
            return None
        same = (there.st_dev, there.st_ino)
        return (*same, there.st_mtime_ns, there.st_size, self._log_in_use()) if self._immutable else same

    @staticmethod
    def _open(uri: str) -> sqlite3.Connection:
        db = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA query_only = 1")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _replaced(self) -> bool:
        """Whether another file, or none, lies where the open one lay."""
        return self._db is not None and self._identity() != self._file

    def _unreadable(self, error: sqlite3.Error) -> RunError:
        name = self.path.parent.name
        return RunError(
            f"the ledger of {name} cannot be read", found=str(error), fix="see that it is a run's"
        )
