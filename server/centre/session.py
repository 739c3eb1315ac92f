"""What the ServerApp does at a centre: find its run's folder, reach the sites, carry out the plan."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from types import FrameType
from typing import Any

from flwr.serverapp import Grid

from common.config import RunConfig
from common.errors import FedcxrError, RunError
from common.signing import load_signing_key
from server.centre.folder import CentreFolder
from server.centre.line import CentreLine, ended_by_flower
from server.centre.registry import Registry
from server.centre.run_folder import RunFolder, run_of_flower
from server.ledger import Ledger
from server.line import Line
from server.plan import run_plan

logger = logging.getLogger(__name__)

_HANDOVER = 30.0
"""Seconds to wait for an earlier ServerApp of the same run to be gone."""


def carry_out(grid: Grid, number: int, config: RunConfig, centre: CentreFolder) -> None:
    """Carry out the run that Flower knows by ``number`` in its folder, from wherever it was left.

    How it ends is told in the ledger, for whoever follows it there.

    Raises:
        FedcxrError: whatever stops the run; every committed round is kept.
    """
    _log_to(centre)
    run = run_of_flower(centre, number)
    logger.info("run %s, Flower's run %d, process %d", run.name, number, os.getpid())
    key = load_signing_key(centre.key("centre.key"))
    with run.hold(_HANDOVER), contextlib.closing(Registry(centre.registry)) as registry:

        def reach(grid: Grid, ledger: Ledger) -> Line:
            ledger.put("flower_run", str(number))
            return CentreLine(grid, ledger, registry, key, number)

        with _told(run), _ended_in_words():
            run_plan(grid, config, run.path, reach, patience=config.rounds.deadline)


@contextlib.contextmanager
def _told(run: RunFolder) -> Iterator[None]:
    """Write to the ledger why a run ends before its time."""
    try:
        yield
    except FedcxrError as error:
        logger.error("run %s ended before its time: %s", run.name, error)
        _tell(run, str(error), error.code)
        raise
    except Exception as error:
        logger.exception("run %s was ended by a fault of ours", run.name)
        _tell(run, f"a fault of ours: {type(error).__name__} (see logs/serverapp.log)", "E_INTERNAL")
        raise


@contextlib.contextmanager
def _ended_in_words() -> Iterator[None]:
    """Let the signals that end a ServerApp end the run with a reason.

    Flower's client interrupts its own process once the SuperLink no longer knows its task.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[number])  # a second one is Flower's own business
        raise ended_by_flower() if number == signal.SIGINT else RunError("the ServerApp was told to stop")

    before.update({number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to(centre: CentreFolder) -> None:
    """Log to a file of the centre's: Flower throws away what a ServerApp writes to its terminal."""
    centre.logs.mkdir(parents=True, exist_ok=True)
    handler = _Log(centre.logs / "serverapp.log", maxBytes=5_000_000, backupCount=2, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("server", "common"):
        package = logging.getLogger(name)
        package.addHandler(handler)
        package.setLevel(logging.INFO)


class _Log(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the library's name)
        """Lose a line rather than the run: the disk may be full."""


def _tell(run: RunFolder, text: str, code: str) -> None:
    """Write the reason to the ledger if there is room; it stands in the process's log anyway."""
    try:
        if run.outcome() != "stopped":  # then it ended because it was to end
            run.tell("failed", text, code=code)
    except (FedcxrError, OSError):
        logger.warning("the reason could not be written to the ledger")
