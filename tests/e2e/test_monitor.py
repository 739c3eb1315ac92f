"""A browser beside a live federation: rounds come, a site dies, an update is refused."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ports import free_port

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
SCREENSHOTS = os.environ.get("FEDCXR_SCREENSHOTS")
"""A folder to keep pictures in; the ones under docs/ were made so."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

PLAN = """
seed = 7
[data]
findings = "effusion, cardiomegaly, edema"
image_size = 48
[model]
backbone = "timm:test_vit"
[pet]
method = "lora"
rank = 4
[train]
batch_size = 16
lr = 0.003
[rounds]
count = 12
sites = 4
quorum = 2
deadline = 20.0
[evaluate]
replicates = 50
matrix = true
calibrate = "platt"
"""
SITES = ("north", "south", "east", "west")
SIZES = {"laptop": (1366, 768), "projector": (1920, 1080)}
LATE, SILENT = 6.0, 16.0


@pytest.fixture(scope="module")
def federation(deploy: Callable[[str], Any]) -> Any:
    """A centre and four hospitals; south's own policy lets no update as large as its own leave."""
    d = deploy("watched")
    d.make_centre()
    d.page = free_port()
    toml = d.centre / "centre.toml"
    monitor = f'\n[monitor]\nlisten = "127.0.0.1:{d.page}"\nlate = {LATE}\nsilent = {SILENT}\n'
    toml.write_text(toml.read_text() + monitor)
    d.export("north", "--studies", "480", "--seed", "11", "--size", "64")
    d.export("south", "--studies", "240", "--seed", "12", "--size", "64", "--scanner", "cr_plate")
    d.export(
        "east", "--studies", "480", "--seed", "13", "--size", "64", "--findings", "effusion,cardiomegaly"
    )
    d.export("west", "--studies", "480", "--seed", "14", "--size", "64")
    plan = d.plan(PLAN)
    for name in SITES:
        d.join(name, approve=False)
        policy = d.sites[name] / "policy.toml"
        text = policy.read_text()
        text = text.replace('"personalise"]', '"personalise", "calibrate"]')
        if name == "south":
            text = re.sub(r"max_update_norm = [\d.]+", "max_update_norm = 0.05", text)
        else:
            text = text.replace("local_adapter = false", "local_adapter = true")
        policy.write_text(text)
        d.approve(name, "--plan", plan)
    d.up(SITES)
    return d


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def kill(d: Any, name: str) -> None:
    """End a whole hospital at once, as a power cut does."""
    hospital = d.running.pop(name)
    for process in [psutil.Process(hospital.pid), *psutil.Process(hospital.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    hospital.wait()


def picture(page: Any, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / f"monitor-{name}.png")


def test_a_browser_watches_a_live_run(federation: Any, browser: Any, wait: Callable[..., Any]) -> None:
    d = federation
    plan = d.root / "plan.toml"
    d.server("run", plan, "--name", "watched", "--yes", "--detach", timeout=300)
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    wait("the page", lambda: _opens(page, f"http://127.0.0.1:{d.page}/runs/watched"), 60)
    loads.clear()

    def rounds() -> int:
        return int(page.locator("main [role=progressbar]").first.get_attribute("aria-valuenow") or 0)

    def contact(site: str) -> str:
        return page.locator(f'tr[data-key="{site}"] [data-contact]').get_attribute("data-contact") or ""

    wait("two rounds to appear without a reload", lambda: rounds() >= 2, 240)
    assert not loads, "the page was loaded again"
    wait("west to be connected", lambda: contact("west") == "connected", 30)
    picture(page, "live")
    note = page.locator('tr[data-key="south note"]').inner_text()
    assert "Rejected in round" in note
    assert "E_EGRESS" in note
    assert "may not leave" in note, "the reason is told in words"

    kill(d, "west")
    seen: list[str] = []

    def turned(last: str) -> bool:
        now = contact("west")
        if not seen or seen[-1] != now:
            seen.append(now)
        return now == last

    wait("west to be called silent", lambda: turned("silent"), 120)
    assert seen[-3:] == ["connected", "late", "silent"], seen
    assert contact("north") == "connected"
    picture(page, "silent-site")
    wait("the run to wait for nobody, or to go on", lambda: rounds() >= 3, 240)

    wait("the run to end", lambda: d.events("watched", "finished"), 600)
    wait("the page to say so", lambda: "finished" in page.locator("main").inner_text().lower(), 30)
    figures = ("curve", "findings", "matrix", "reliability", "weights", "pairs", "lora-error", "drift")
    for figure in figures:
        place = page.locator(f'figure[data-figure="{figure}"]')
        place.scroll_into_view_if_needed()
        wait(f"the figure {figure}", lambda place=place: place.locator("svg.main-svg").count() > 0, 30)
    reliability = page.locator('figure[data-figure="reliability"]')
    for words in ("before calibration", "after calibration"):
        wait(words, lambda words=words: words in reliability.inner_text().lower(), 30)
    matrix = page.request.get(f"http://127.0.0.1:{d.page}/api/v1/runs/watched/matrix").json()
    cells = dict(zip(matrix["models"], matrix["values"], strict=True))
    measured = {model: sum(value is not None for value in row) for model, row in cells.items()}
    assert measured["federated"] == 3, "west is gone"
    assert measured["local of north"] == 3
    assert measured["local of south"] == 1, "its policy keeps its own model to itself"
    assert not loads
    assert not wrong, wrong
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for section in ("sites", "curves", "matrix", "aggregation"):
            page.locator(f"#{section} h2").first.evaluate("title => title.scrollIntoView()")
            page.wait_for_timeout(800)
            picture(page, f"{size}-{section}")


def _opens(page: Any, address: str) -> bool:
    try:
        answer = page.goto(address)
    except playwright.Error:
        return False
    return bool(answer and answer.ok)
