"""What the ServerApp does at a centre: find its run's folder, reach the sites, carry out the plan."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler

from flwr.serverapp import Grid

from common.config import RunConfig
from common.errors import FedcxrError
from common.signing import load_signing_key
from server.centre.folder import CentreFolder
from server.centre.line import CentreLine
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

        with _told(run):
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
        run.tell("failed", text, code=code)
    except (FedcxrError, OSError):
        logger.warning("the reason could not be written to the ledger")
