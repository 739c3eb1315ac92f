"""What a page is dressed in: style, script, icon and Plotly's own script, all out of the package.

Nothing comes from a network. A file's address names its digest, so that browsers keep it for good
and ask anew only after an upgrade.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)

_HERE = Path(__file__).parent / "static"
_REPORT_STYLE = Path(__file__).parents[1] / "templates" / "report.css"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_GOOD = "public, max-age=31536000, immutable"
_DARK = re.compile(r"@media screen and \(prefers-color-scheme: dark\) \{\s*:root \{(?P<tokens>[^}]*)\}\s*\}")
_LIGHT = re.compile(r":root \{[^}]*\}")


@dataclass(frozen=True)
class Asset:
    """One packaged file."""

    path: Path

    @property
    def kind(self) -> str:
        """Its media type."""
        return _KINDS[self.path.suffix]

    def content(self) -> bytes:
        """Return what is sent: styles with both themes selectable, anything else as it lies there."""
        if self.path.name == "monitor.css":
            return (report_tokens() + themed(self.path.read_text(encoding="utf-8"))).encode()
        return self.path.read_bytes()

    @cached_property
    def digest(self) -> str:
        """First 12 digits of the content's SHA-256."""
        return hashlib.sha256(self.content()).hexdigest()[:12]

    @cached_property
    def packed(self) -> bytes:
        """The content, gzip at its best once: Plotly's script is 4.8 MB, and 1.4 MB packed."""
        return gzip.compress(self.content(), compresslevel=9, mtime=0)


def themed(style: str) -> str:
    """Let ``data-theme`` on the root choose what is otherwise the system's choice of light or dark.

    >>> print(themed("@media screen and (prefers-color-scheme: dark) { :root { --ink: white; } }"))
    @media screen and (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --ink: white; } }
    @media screen { :root[data-theme=dark] { --ink: white; } }
    """

    def both(match: re.Match[str]) -> str:
        tokens = match["tokens"]
        return (
            "@media screen and (prefers-color-scheme: dark) "
            f"{{ :root:not([data-theme=light]) {{{tokens}}} }}\n"
            f"@media screen {{ :root[data-theme=dark] {{{tokens}}} }}"
        )

    return _DARK.sub(both, style)


def report_tokens() -> str:
    """Return the report's colours and fonts, which are the monitor's too: one family, written once."""
    style = _REPORT_STYLE.read_text(encoding="utf-8")
    light, dark = _LIGHT.search(style), _DARK.search(style)
    if light is None or dark is None:
        raise LookupError("report.css no longer starts with the two sets of tokens")
    return f"{light[0]}\n{themed(dark[0])}\n"


def _plotly() -> Path:
    """Find Plotly's script without importing the package, which takes memory that the page need not."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("plotly is not installed")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """Return every file that is served, by the name in its address."""
    found = {path.name: Asset(path) for path in sorted(_HERE.iterdir()) if path.suffix in _KINDS}
    return found | {"plotly.js": Asset(_plotly())}


def address_of(name: str) -> str:
    """Return the address of a file, which changes with its content.

    Raises:
        KeyError: if no such file is packaged.
    """
    return f"/static/{name}?v={assets()[name].digest}"


@router.get("/static/{name}")
@router.head("/static/{name}")
def static(name: str, request: Request) -> Response:
    """Send a packaged file; one whose address names its digest may be kept for good."""
    asset = assets().get(name)
    if asset is None:
        return Response("no such file\n", 404, media_type="text/plain")
    tag = f'"{asset.digest}"'
    current = request.query_params.get("v") == asset.digest
    headers = {
        "Cache-Control": _FOR_GOOD if current else "no-cache",
        "ETag": tag,
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.packed, media_type=asset.kind, headers=headers)
    return Response(asset.content(), media_type=asset.kind, headers=headers)
