"""How a page is made: one environment of templates, one frame around every page."""

from __future__ import annotations

import gzip
import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from common.page import templates_in
from server.monitor.address import Address
from server.monitor.assets import address_of
from server.monitor.wording import FILTERS, GLOBALS


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates, which escape whatever is put in."""
    made = templates_in(Path(__file__).parent / "templates")
    made.auto_reload = False  # else it looks at every file's age for every part
    made.filters.update(FILTERS)
    made.globals.update(GLOBALS | {"asset": address_of})
    return made


def page(request: Request, template: str, *, status: int = 200, **shown: Any) -> HTMLResponse:
    """Render a whole page: the frame gets the theme, the clock and who is signed in.

    ``request.state.user`` is the name of who is signed in, where there is a login.
    """
    here = Address.of(request.query_params)
    dark, wide = here.theme == "dark", here.projector
    frame = {
        "here": here,
        "now": time.time(),
        "switches": (
            ("theme", "Light" if dark else "Dark", _switched(request, "theme", "light" if dark else "dark")),
            (
                "projector",
                "Desk view" if wide else "Projector",
                _switched(request, "projector", "" if wide else "1"),
            ),
        ),
        "user": getattr(request.state, "user", None),
    }
    body = environment().get_template(template).render(frame | shown).encode()
    headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, compresslevel=3, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return HTMLResponse(body, status, headers)


def _switched(request: Request, name: str, value: str) -> str:
    """Return the same address with one thing said differently, for where no script switches."""
    query = {key: said[:2000] for key, said in request.query_params.items() if key != name}
    if value:
        query[name] = value
    return f"?{urlencode(query)}"
