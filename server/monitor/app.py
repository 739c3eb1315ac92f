"""create_app: the monitor's web application out of its parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from common.errors import FedcxrError, RunError
from server.monitor import api, assets, downloads, healthz, live, login, metrics, pages
from server.monitor.guard import WORDS, Guard, error_body, for_people
from server.monitor.layout import page
from server.monitor.login import LoginGate
from server.monitor.state import Monitor

log = logging.getLogger("fedcxr.monitor")


def create_app(monitor: Monitor) -> FastAPI:
    """Return the application: guard, login, and every router; it reads runs and changes none."""
    # No schema nor documentation of FastAPI's own: those pages load scripts from elsewhere.
    app = FastAPI(title="fedcxr monitor", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.monitor = monitor
    for module in (assets, live, login, healthz, metrics, api, downloads, pages):
        app.include_router(module.router)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(FedcxrError, _our_error)
    app.add_middleware(LoginGate, monitor=monitor)
    app.add_middleware(Guard, names=monitor.names, secure=monitor.secure)  # last added: outermost
    return app


def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    return _page(request, status, WORDS.get(status, ""), headers)


def _our_error(request: Request, error: Exception) -> Response:
    """A run that is not there, or a ledger that cannot be read; paths and values stay in the log."""
    if isinstance(error, RunError):
        return _page(request, 404, "There is no such run here.")
    log.error("%s while answering %s", getattr(error, "code", ""), request.scope["route"].path)
    return _page(request, 500, WORDS[500])


def _page(request: Request, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    if for_people(request.url.path):
        answer: Response = page(
            request, "problem.html.j2", status=status, title=HTTPStatus(status).phrase, text=text
        )
    else:
        answer = Response(error_body(text), status, media_type="application/json")
    answer.headers.update(headers or {})
    return answer
