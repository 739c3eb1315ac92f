"""``/runs/{run}/download/{file}``: a run's report, plan, release, ledger and tables as files.

What can be asked for is a fixed list; nothing in an address ever becomes a path.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from common.errors import CheckpointError
from server.monitor.problems import BusyError, NotFoundError, ProblemRoute, found_run
from server.monitor.table_files import csv_pieces, make_parquet
from server.monitor.tables import TABLES

if TYPE_CHECKING:
    from server.facts.runs import Run
    from server.monitor.state import Monitor

router = APIRouter(route_class=ProblemRoute)

RELEASE = (
    "README.md",
    "adapter_config.json",
    "fedcxr_adapter.json",
    "adapter_model.safetensors",
    "clinical.safetensors",
    "merged.safetensors",
)
"""What a release may hold; the adapter's digest is in the ledger."""
_ADAPTER = "adapter_model.safetensors"

_PIECE = 256 * 1024
_AT_ONCE = 2
"""Files made on the disk at the same time."""
_PATIENCE = 10.0
"""Seconds to wait for one's turn."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""Before which a zip file knows no time."""
_making = threading.BoundedSemaphore(_AT_ONCE)

Pieces = Iterator[bytes]


@dataclass(frozen=True)
class Offer:
    """A file that can be had of a run now."""

    file: str
    about: str


@dataclass(frozen=True)
class _Kind:
    about: str
    media_type: str
    is_there: Callable[[Run], bool]
    read: Callable[[Run], Pieces]


def offers(run: Run) -> list[Offer]:
    """Return the files that a run has now, in the order in which they are offered."""
    return [Offer(file, kind.about) for file, kind in _FILES.items() if kind.is_there(run)]


@router.get("/runs/{run}/download/{file}", include_in_schema=False)
def download(request: Request, run: str, file: str) -> Response:
    """Hand out one file of a run."""
    monitor: Monitor = request.app.state.monitor
    found = found_run(monitor, run)
    kind = _FILES.get(file)
    if kind is None:
        raise NotFoundError(f"there is no such file; there are: {', '.join(_FILES)}")
    if not kind.is_there(found):
        raise NotFoundError(f"{file} is not there yet: {kind.about[0].lower()}{kind.about[1:]}")
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(found.key, safe='')}-{file}",
        "Cache-Control": "no-store",
    }
    return StreamingResponse(_begun(kind.read(found)), headers=headers, media_type=kind.media_type)


def _begun(pieces: Pieces) -> Pieces:
    """Read the first piece now, while what goes wrong can still be told by the status."""
    first = next(pieces, b"")

    def all_pieces() -> Pieces:
        yield first
        yield from pieces

    return all_pieces()


def _plain(name: str) -> tuple[Callable[[Run], bool], Callable[[Run], Pieces]]:
    """Return how to find and to read a file that lies in the run's folder."""

    def read(run: Run) -> Pieces:
        try:
            stream = (run.folder / name).open("rb")
        except OSError:
            raise NotFoundError(f"{name} cannot be read") from None
        with stream:
            yield from _pieces(stream)

    return lambda run: (run.folder / name).is_file(), read


def _pieces(stream: IO[bytes]) -> Pieces:
    while piece := stream.read(_PIECE):
        yield piece


def _has_ledger(run: Run) -> bool:
    return (run.folder / "ledger.sqlite").is_file()


@contextmanager
def _turn() -> Iterator[None]:
    """Wait for one's turn to make a file on the disk.

    Raises:
        BusyError: if others take too long.
    """
    if not _making.acquire(timeout=_PATIENCE):
        raise BusyError("others are downloading; try again in a moment")
    try:
        yield
    finally:
        _making.release()


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fedcxr-")


# ------------------------------------------------------------------ archives


class _Sink:
    """What `zipfile` writes into: gives the bytes away instead of keeping them."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        """Take some bytes."""
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing is open here."""

    def take(self) -> bytes:
        """Give away what came since the last call."""
        taken, self._held = bytes(self._held), bytearray()
        return taken


def _zip(members: Iterable[tuple[str, float, Pieces]], compression: int) -> Pieces:
    """Pack (name, seconds since 1970, content) as it is read."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, moment, pieces in members:
            entry = zipfile.ZipInfo(name, max(time.gmtime(moment)[:6], _EARLIEST))
            entry.compress_type, entry.external_attr = compression, 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as out:
                for piece in pieces:
                    out.write(piece)
                    yield sink.take()
    yield sink.take()


def _release_names(run: Run) -> list[str]:
    return [name for name in RELEASE if (run.folder / "release" / name).is_file()]


def _release(run: Run) -> Pieces:
    """Pack the release, once its adapter is the one the ledger names.

    Raises:
        CheckpointError: if it is not.
    """
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context((run.folder / "release" / name).open("rb"))
            for name in _release_names(run)
        }
        adapter = opened[_ADAPTER]
        found = hashlib.file_digest(adapter, "sha256").hexdigest()
        adapter.seek(0)
        if found != (run.view().get("released") or {}).get("sha256"):
            raise CheckpointError("the released adapter is not the one that the ledger names")
        members = (
            (name, os.fstat(stream.fileno()).st_mtime, _pieces(stream)) for name, stream in opened.items()
        )
        yield from _zip(members, zipfile.ZIP_STORED)


def _ledger(run: Run) -> Pieces:
    """Pack a copy of the ledger as it is at one moment, and every table of that copy."""
    with _scratch() as scratch:
        copy = Path(scratch) / "ledger.sqlite"
        with _turn():
            source = sqlite3.connect(
                f"{(run.folder / 'ledger.sqlite').absolute().as_uri()}?mode=ro", uri=True
            )
            with closing(source), closing(sqlite3.connect(copy)) as target:
                source.backup(target)
                # In one file, which opens where nothing can be written beside it.
                target.execute("PRAGMA journal_mode=DELETE")
        now = time.time()
        with copy.open("rb") as stream:
            tables = ((f"{name}.csv", now, csv_pieces(table, copy)) for name, table in TABLES.items())
            yield from _zip([(copy.name, now, _pieces(stream)), *tables], zipfile.ZIP_DEFLATED)


def _parquet(name: str) -> Callable[[Run], Pieces]:
    def read(run: Run) -> Pieces:
        with _scratch() as scratch:
            file = Path(scratch) / f"{name}.parquet"
            with _turn():
                make_parquet(TABLES[name], run.folder / "ledger.sqlite", file)
            with file.open("rb") as stream:
                yield from _pieces(stream)

    return read


def _csv(name: str) -> Callable[[Run], Pieces]:
    return lambda run: csv_pieces(TABLES[name], run.folder / "ledger.sqlite")


def _kinds() -> dict[str, _Kind]:
    found = {
        "report.html": _Kind("The report, once the run has finished.", "text/html", *_plain("report.html")),
        "report.json": _Kind(
            "The report for programs, once the run has finished.", "application/json", *_plain("report.json")
        ),
        "plan.toml": _Kind("The plan with every setting.", "application/toml", *_plain("plan.toml")),
        "release.zip": _Kind(
            "The released adapter, once the run has finished.",
            "application/zip",
            lambda run: _ADAPTER in _release_names(run),
            _release,
        ),
        "ledger.zip": _Kind(
            "The whole ledger: SQLite, and every table as CSV.", "application/zip", _has_ledger, _ledger
        ),
    }
    for name, table in TABLES.items():
        found[f"{name}.csv"] = _Kind(table.about, "text/csv; charset=utf-8", _has_ledger, _csv(name))
        found[f"{name}.parquet"] = _Kind(
            table.about, "application/vnd.apache.parquet", _has_ledger, _parquet(name)
        )
    return found


_FILES = _kinds()
FILES = tuple(_FILES)
"""Every file that can be asked for."""
