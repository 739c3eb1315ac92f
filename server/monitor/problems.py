"""Errors as programs read them: problem details (RFC 9457) with our stable code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from common.errors import FedcxrError, RunError

if TYPE_CHECKING:
    from server.facts.runs import Run
    from server.monitor.state import Monitor


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    """Always ``about:blank``: `code` says which problem this is."""
    title: str
    """The status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What went wrong, in a sentence."""
    code: str
    """Stable code: E_RUN, E_CONFIG ..."""


class NotFoundError(RunError):
    """There is no such run, site, finding or file."""

    code = "E_UNKNOWN"


class BusyError(RunError):
    """Too much is asked for at once."""

    code = "E_BUSY"


class KnownError(Exception):
    """The caller has this very answer; not an error, but the way out of a handler."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.tag = tag


_AGAIN = {"Cache-Control": "private, no-cache"}
"""Keep it, but ask before you show it again."""
_STATUS: dict[type[FedcxrError], int] = {NotFoundError: 404, BusyError: 503}


def problem(status: int, code: str, detail: str) -> Response:
    """Answer with a problem."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, code=code)
    headers = {"Cache-Control": "no-store"}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "5"
    return JSONResponse(body.model_dump(), status, headers, media_type="application/problem+json")


class ProblemRoute(APIRoute):
    """A route whose errors are problems, and whose unchanged answers are 304."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route's own handler."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return _tagged(request, await handle(request))
            except KnownError as known:
                return Response(status_code=304, headers={"ETag": known.tag, **_AGAIN})
            except RequestValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                return problem(422, "E_CONFIG", f"{where}: {first['msg']}")
            except HTTPException as error:
                return problem(error.status_code, "E_REFUSED", str(error.detail))
            except FedcxrError as error:
                return problem(_STATUS.get(type(error), 500), error.code, error.problem)

        return guarded


def is_known(request: Request, tag: str) -> bool:
    """Whether the caller says that it has the answer with this tag (RFC 9110, 13.1.2)."""
    given = request.headers.get("if-none-match", "")
    return tag.removeprefix("W/") in {one.strip().removeprefix("W/") for one in given.split(",")}


def _tagged(request: Request, response: Response) -> Response:
    """Give a JSON answer the digest of its text for a tag, where it has none yet.

    Raises:
        KnownError: if the caller has this very text.
    """
    body = getattr(response, "body", None)  # a stream has none
    if response.status_code != HTTPStatus.OK or not isinstance(body, bytes):
        return response
    if "etag" not in response.headers:
        tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
        if is_known(request, tag):
            raise KnownError(tag)
        response.headers["ETag"] = tag
    response.headers.update(_AGAIN)
    return response


def found_run(monitor: Monitor, key: str) -> Run:
    """Return a run by its key.

    Raises:
        NotFoundError: if there is none.
    """
    try:
        return monitor.runs.find(key)
    except RunError:
        raise NotFoundError("there is no such run") from None
