"""What Flower's database and log may say: faults are told apart, contents stay out of the log."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext

LONGEST_LINE = 400
"""Characters of one log message; what Flower says in more is a dump of something."""


@dataclass
class Faults:
    """What went wrong in the database while one request was served."""

    disk_full: bool = False
    busy: bool = False


_current: ContextVar[Faults | None] = ContextVar("fedcxr_faults", default=None)


@contextmanager
def watch_faults() -> Iterator[Faults]:
    """Collect the database's faults of this request.

    Flower answers "stored" or a bare 500 when its disk is full: the cause is only seen here.
    """
    faults = Faults()
    token = _current.set(faults)
    try:
        yield faults
    finally:
        _current.reset(token)


def listen_to_databases() -> None:
    """Note faults of every SQLAlchemy engine, and keep parameters (contents) out of error texts."""
    if not event.contains(Engine, "handle_error", _note):
        event.listen(Engine, "handle_error", _note)


def is_disk_full(error: BaseException) -> bool:
    """Whether SQLite or the file system says that there is no space."""
    if isinstance(error, OSError):
        return error.errno in (28, 122)
    return isinstance(error, sqlite3.Error) and bool(
        re.search(r"disk is full|disk I/O error|unable to open database file", str(error))
    )


def _note(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.hide_parameters = True
    faults = _current.get()
    if faults is not None and isinstance(context.original_exception, sqlite3.Error):
        faults.disk_full |= is_disk_full(context.original_exception)
        faults.busy |= "database is locked" in str(context.original_exception)


class PlainLines(logging.Filter):
    """Cut a record to one short line without statements, values and tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; nothing under INFO passes."""
        if record.levelno < logging.INFO:
            return False
        if isinstance(record.msg, dict):
            # Flower's query(): {"query", "data", "exception"}; data is what a site sent.
            words = f"database: {record.msg.get('query', '')}"
        else:
            words = record.getMessage()
        words = re.split(r"\[SQL|\[parameters|\n", words, maxsplit=1)[0].rstrip()
        if record.exc_info and record.exc_info[0] is not None:
            words += f" ({_where(record.exc_info[0], record.exc_info[2])})"
        record.msg, record.args = words[:LONGEST_LINE], ()
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        return True


def _where(kind: type[BaseException], place: TracebackType | None) -> str:
    """Name an exception's type and its place, not its words."""
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return kind.__name__
    return f"{kind.__name__} in {place.tb_frame.f_code.co_name}, line {place.tb_lineno}"


def quiet_logs(level: int = logging.INFO) -> None:
    """Send Flower's, uvicorn's and our own log to standard error through ``PlainLines``."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    handler.addFilter(PlainLines())
    for name in ("flwr", "uvicorn", "uvicorn.error", "uvicorn.access", "fedcxr", "asyncio", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True
    for name in ("uvicorn.error", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
