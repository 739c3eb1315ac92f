"""Style and script: served from the package, kept for good, in the report's own colours."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from server.facts.runs import Runs
from server.monitor.assets import address_of, assets
from server.monitor.state import Monitor

MONITOR = Path(str(find_spec("server.monitor").submodule_search_locations[0]))  # type: ignore[union-attr,index]


@pytest.fixture(scope="module")
def client(page_serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    monitor = Monitor(Runs.of_folder(tmp_path_factory.mktemp("none")))
    with page_serving(monitor) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.mark.parametrize("name", [*assets()])
def test_every_file_is_served_packed_or_not_and_kept_for_good(client: httpx.Client, name: str) -> None:
    packed = client.get(address_of(name), headers={"Accept-Encoding": "gzip"})
    plain = client.get(address_of(name), headers={"Accept-Encoding": "identity"})
    assert packed.status_code == plain.status_code == 200
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert packed.content == plain.content and len(plain.content) > 200
    assert "immutable" in packed.headers["cache-control"]


def test_plotly_is_the_packages_own_script(client: httpx.Client) -> None:
    spec = find_spec("plotly")
    assert spec is not None and spec.origin is not None
    script = (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    assert client.get("/static/plotly.js", headers={"Accept-Encoding": "identity"}).content == script
    assert len(assets()["plotly.js"].packed) < 1_700_000
    assert gzip.decompress(assets()["plotly.js"].packed) == script


def test_a_known_tag_is_not_sent_again_and_an_old_address_is_not_kept(client: httpx.Client) -> None:
    first = client.get("/static/monitor.js?v=0123")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/monitor.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


@pytest.mark.parametrize("name", ["nothing.css", "..%2Fassets.py", "%2e%2e/pages.py", "monitor.css%00"])
def test_nothing_else_is_served(client: httpx.Client, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_templates_hold_no_script_of_their_own() -> None:
    for template in (MONITOR / "templates").glob("*.j2"):
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), template.name
        assert not re.search(r"\son[a-z]+\s*=", text), template.name
        assert "javascript:" not in text and "| safe" not in text, template.name


def test_the_script_makes_no_code_of_text() -> None:
    script = (MONITOR / "static" / "monitor.js").read_text(encoding="utf-8")
    assert not re.search(r"\beval\(|new Function|document\.write|outerHTML|insertAdjacentHTML", script)
    assert script.count("innerHTML") == 1, "one place takes the server's parts, and no other"


def test_both_themes_have_the_reports_colours_in_a_browser(page_browser: Browser, repository: Path) -> None:
    """The report as its own system theme shows it, against the monitor with a theme chosen by its reader."""
    report = (repository / "server" / "templates" / "report.css").read_text(encoding="utf-8")
    names = sorted(set(re.findall(r"(--[a-z0-9-]+):", report)) - {"--tone", "--tone-panel"})
    assert len(names) > 25
    read = "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue(n).trim())"
    seen = {}
    for theme, other in (("light", "dark"), ("dark", "light")):
        page = page_browser.new_page(color_scheme=theme)
        page.set_content(f"<style>{report}</style>")
        wanted = page.evaluate(read, names)
        page.close()
        page = page_browser.new_page(color_scheme=other)
        style = assets()["monitor.css"].content().decode()
        page.set_content(f"<html data-theme={theme}><style>{style}</style></html>")
        seen[theme] = page.evaluate(read, names)
        page.close()
        assert seen[theme] == wanted
    assert seen["light"] != seen["dark"]
