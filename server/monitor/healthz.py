"""``/healthz``, and what 'healthy' means here: the ledgers can be read, and the centre answers."""

from __future__ import annotations

import http.client
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import State

from common.errors import FedcxrError
from server.monitor.settings import split_listen

if TYPE_CHECKING:
    from server.centre.folder import CentreFolder
    from server.facts.runs import Runs
    from server.monitor.state import Monitor

Check = Callable[[], bool]
"""Whether a part is well, now; takes at most some two seconds and never raises."""

_PATIENCE = 1.5
"""Seconds a step of asking the centre may take; a stopped SuperLink accepts and says nothing."""
_FRESH = 2.0
"""Seconds for which a result is given again, however many ask."""
_NEWEST = 20
"""Runs whose ledgers are looked at."""
_HEALTH = "/health"

router = APIRouter()


class Healthz(BaseModel):
    """Whether the monitor works, and what it stands on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok", "failed"]
    """``failed`` if any check is."""
    checks: dict[str, Literal["ok", "failed"]]
    """``monitor``: the ledgers of the newest runs can be read. ``centre``, beside a centre: its
    SuperLink answers."""


class Recent:
    """A check whose result is kept for two seconds, so that asking often costs nothing."""

    def __init__(self, check: Check, clock: Callable[[], float] = time.monotonic) -> None:
        self._check, self._clock = check, clock
        self._lock = threading.Lock()
        self._last: tuple[float, bool] | None = None

    def __call__(self) -> bool:
        """Return the result, at most two seconds old; while somebody looks, the one before."""
        last = self._last
        if last is not None and self._clock() - last[0] <= _FRESH:
            return last[1]
        if not self._lock.acquire(blocking=last is None):
            assert last is not None  # noqa: S101  (for the type checker)
            return last[1]
        try:
            well = self._check()
            self._last = (self._clock(), well)
            return well
        finally:
            self._lock.release()


def checks_of(monitor: Monitor) -> Mapping[str, Check]:
    """Return what can be checked: ``monitor``, and ``centre`` where the runs are a centre's."""
    checks: dict[str, Check] = {"monitor": lambda: ledgers_readable(monitor.runs)}
    if (centre := monitor.folder) is not None:
        checks["centre"] = lambda: centre_answers(centre)
    return checks


def ledgers_readable(runs: Runs) -> bool:
    """Whether the newest runs can be listed and their ledgers read."""
    try:
        for run in runs.list()[:_NEWEST]:
            run.view().revision()
    except (FedcxrError, OSError, sqlite3.Error):
        return False
    return True


def centre_answers(centre: CentreFolder) -> bool:
    """Whether the SuperLink behind the centre's gateway answers, over TLS, as who it should be."""
    try:
        return answers(centre.config().admin, centre.key("ca.crt"))
    except FedcxrError:
        return False


def answers(address: str, authority: Path) -> bool:
    """Whether ``https://ADDRESS/health`` answers 200 with a certificate of this authority."""
    host, port = split_listen(address)
    try:
        context = ssl.create_default_context(cafile=authority)
        connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE, context=context)
        try:
            connection.request("GET", _HEALTH)
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False


def recent_checks(state: State) -> Mapping[str, Recent]:
    """Return the checks of an application, made once and kept at ``app.state.health``."""
    if getattr(state, "health", None) is None:
        state.health = {name: Recent(check) for name, check in checks_of(state.monitor).items()}
    kept: Mapping[str, Recent] = state.health
    return kept


@router.get(
    "/healthz", responses={503: {"model": Healthz, "description": "A check failed."}}, tags=["health"]
)
def healthz(request: Request, response: Response) -> Healthz:
    """Say whether the monitor works: 200, or 503 where a check failed. Names nothing; needs no login."""
    found = {name: check() for name, check in recent_checks(request.app.state).items()}
    well = all(found.values())
    response.status_code = 200 if well else 503
    response.headers["Cache-Control"] = "no-store"
    return Healthz(
        status="ok" if well else "failed",
        checks={name: "ok" if fine else "failed" for name, fine in found.items()},
    )
