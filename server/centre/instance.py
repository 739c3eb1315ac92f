"""One instance of a centre at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from common.errors import DeploymentError
from server.centre.folder import CentreFolder

_LOCK = ".running"


@contextlib.contextmanager
def only_one(centre: CentreFolder) -> Iterator[None]:
    """Keep a second instance from starting; the kernel lets go when this process dies.

    Raises:
        DeploymentError: if the centre runs already.
    """
    descriptor = os.open(centre.root / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeploymentError(
                "this centre runs already", found=str(centre.root), fix="stop the other one first"
            ) from None
        yield
    finally:
        os.close(descriptor)


def is_running(centre: CentreFolder) -> bool:
    """Whether the centre's processes are kept running by somebody."""
    try:
        with only_one(centre):
            return False
    except DeploymentError:
        return True
