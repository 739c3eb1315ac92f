"""``/openapi.json`` and ``/api``: the JSON API described for programs, and as a page to try it on.

The page is Swagger UI from the package ``swagger_ui_bundle``: nothing is loaded from elsewhere.
"""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from server.monitor.problems import NotFoundError, ProblemRoute

router = APIRouter(include_in_schema=False, route_class=ProblemRoute)

_DESCRIBED = ("/api/v1/", "/metrics", "/healthz")
_ABOUT = """Everything the monitor shows, for programs. Read only.

Within `/api/v1` fields are added, never renamed or taken away. What is undefined is `null`, never a
stand-in. Times are seconds since 1970 (UTC). Intervals are `[low, high]` at 95 %. Errors are problem
details (RFC 9457) with a stable `code`. Send an `ETag` back as `If-None-Match` and you are told 304
while nothing has changed."""
_LOGIN = "HTTP Basic with a user of the monitor, where it asks for a login (`fedcxr-server password`)."
_REFERENCE = "#/components/schemas/"

_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_BEGIN = """\
"use strict";
window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "/api/assets/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null,
    supportedSubmitMethods: ["get"],
  });
});
"""
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fedcxr: the monitor's API</title>
<link rel="icon" href="/api/assets/favicon-32x32.png">
<link rel="stylesheet" href="/api/assets/swagger-ui.css">
<script src="/api/assets/swagger-ui-bundle.js" defer></script>
<script src="/api/assets/begin.js" defer></script>
</head>
<body style="margin: 0; background: #fff">
<main id="swagger-ui"></main>
<noscript><p>This page needs scripts; <a href="/openapi.json">openapi.json</a> does not.</p></noscript>
</body>
</html>
"""
_KEEP = {"Cache-Control": "private, max-age=3600"}
_making = threading.Lock()


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of what programs may rely on; pages are not in it."""
    document = get_openapi(
        title="fedcxr monitor", version=version("fedcxr"), description=_ABOUT, routes=app.routes
    )
    document["paths"] = {
        path: operations for path, operations in document["paths"].items() if path.startswith(_DESCRIBED)
    }
    schemas = document.get("components", {}).get("schemas", {})
    used = _used(document["paths"], schemas)
    document["components"] = {
        "schemas": {name: schemas[name] for name in sorted(used)},
        "securitySchemes": {"login": {"type": "http", "scheme": "basic", "description": _LOGIN}},
    }
    document["security"] = [{"login": []}, {}]
    return document


def _used(part: Any, schemas: dict[str, Any]) -> set[str]:
    """Return the schemas that a part of a description refers to, and those that they refer to."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        match waiting.pop():
            case {"$ref": str(reference)}:
                name = reference.removeprefix(_REFERENCE)
                if name in schemas and name not in found:
                    found.add(name)
                    waiting.append(schemas[name])
            case dict(content):
                waiting += content.values()
            case list(content):
                waiting += content
    return found


def as_of_3_0(part: Any) -> Any:
    """Say a description in the words of OpenAPI 3.0, which is all that the packaged page reads.

    >>> as_of_3_0({"openapi": "3.1.0", "x": {"anyOf": [{"type": "number"}, {"type": "null"}], "title": "X"}})
    {'openapi': '3.0.3', 'x': {'title': 'X', 'type': 'number', 'nullable': True}}
    >>> as_of_3_0({"const": "about:blank", "type": "string"})
    {'type': 'string', 'enum': ['about:blank']}
    """
    if isinstance(part, list):
        return [as_of_3_0(one) for one in part]
    if not isinstance(part, dict):
        return part
    found = {key: as_of_3_0(value) for key, value in part.items()}
    if "openapi" in found:
        found["openapi"] = "3.0.3"
    if "const" in found:
        found["enum"] = [found.pop("const")]
    choices = found.get("anyOf", ())
    real = [choice for choice in choices if choice != {"type": "null"}]
    if len(real) < len(choices):
        del found["anyOf"]
        alone = real[0] if len(real) == 1 else {"anyOf": real}
        found |= {"allOf": [alone]} if "$ref" in alone else alone
        found["nullable"] = True
    return found


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the description, made once."""
    with _making:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema


@router.get("/openapi.json")
def openapi(request: Request) -> Response:
    """Describe the API, in OpenAPI 3.1."""
    return JSONResponse(_described(request.app))


@router.get("/api")
def page() -> Response:
    """Show the description as a page."""
    return HTMLResponse(_PAGE)


@router.get("/api/assets/{name}")
def asset(request: Request, name: str) -> Response:
    """Hand out a part of the page."""
    if name == "openapi.json":
        return JSONResponse(as_of_3_0(_described(request.app)))
    if name == "begin.js":
        return Response(_BEGIN, media_type="text/javascript")
    if name not in _ASSETS:
        raise NotFoundError("there is no such file")
    from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

    return FileResponse(swagger_ui_path / name, media_type=_ASSETS[name], headers=_KEEP)
