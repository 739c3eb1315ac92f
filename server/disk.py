"""A full disk: wait for room, say so, and go on; what was computed is not thrown away."""

from __future__ import annotations

import errno
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from common.errors import RunError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PAUSE = 2.0


def is_full(error: Exception) -> bool:
    """Whether an error says that there is no room left on a disk.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError(errno.EIO, "broken"))
    (True, False)
    """
    if isinstance(error, sqlite3.OperationalError):
        # In its write-ahead log SQLite calls a short write an I/O error.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return isinstance(error, OSError) and error.errno in _FULL


def with_room(write: Callable[[], Result], what: str, patience: float, pause: float = _PAUSE) -> Result:
    """Return what ``write`` returns; where the disk is full, try again for ``patience`` seconds.

    ``write`` must leave things as they were when it fails.

    Raises:
        RunError: if there is still no room after that.
    """
    started = time.monotonic()
    said = False
    while True:
        try:
            result = write()
        except (OSError, sqlite3.OperationalError) as error:
            if not is_full(error):
                raise
            waited = time.monotonic() - started
            if waited >= patience:
                raise RunError(
                    f"the disk is full: {what} cannot be written",
                    found=f"no room for {waited:.0f} s ({error})",
                    fix="make room, then resume the run; every committed round is kept",
                ) from None
            if not said:
                logger.warning("the disk is full: %s waits for room, at most %.0f s", what, patience)
                said = True
            time.sleep(min(pause, patience - waited))
            continue
        if said:
            logger.warning("there is room again: %s is written", what)
        return result
