"""The pages in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from server.facts.runs import Runs
from server.monitor.state import Monitor
from server.monitor.wording import span
from tests.server.monitor.markup import MARKUP


@pytest.fixture
def opened(page_browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page that fails the test if its script fails, anything asks a question, or the CSP objects."""
    faults: list[str] = []
    contexts = []

    def open_page(url: str, **how: Any) -> Page:
        context = page_browser.new_context(**({"viewport": {"width": 1366, "height": 768}} | how))
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda said: faults.append(said.text) if "Security Policy" in said.text else None)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def draw_all(page: Page) -> None:
    """Scroll past every figure: each is drawn when it comes near the screen."""
    if page.locator("body[data-update]").count():
        expect(page.locator("body[data-revision]")).to_be_attached()
    for figure in page.locator("figure[data-figure]:not([hidden])").all():
        figure.scroll_into_view_if_needed()
        expect(figure.locator(".main-svg").first).to_be_attached()


def test_rounds_appear_without_a_reload(opened: Any, address: str, page_live: Any) -> None:
    page = opened(f"{address}/runs/pilot")
    page.evaluate("window.mine = 'the same page'")
    expect(page.locator(".under strong")).to_have_text("2")
    expect(page.locator("[data-connection]")).to_have_text("live")
    for site in ("east", MARKUP):
        page_live.answer(3, site)
    page_live.commit(3)
    expect(page.locator(".under strong")).to_have_text("3")
    expect(page.locator(".feed")).to_contain_text("Round 3: 4 of 4 sites")
    page_live.ask(4)
    expect(page.locator(".lead")).to_contain_text("Round 4 of 8, waiting for")
    page_live.reject(4, "north")
    expect(page.locator("tr.note", has_text="north")).to_contain_text("Rejected in round 4")
    assert page.evaluate("window.mine") == "the same page"


def test_a_site_that_falls_silent_turns_colour_by_itself(
    page_live: Any, page_centre: Any, page_serving: Any, opened: Any
) -> None:
    """No word from the server is needed: the page counts."""
    monitor = Monitor(Runs.of_centre(page_centre.folder))
    monitor.settings = monitor.settings.model_copy(update={"late": 4.0, "silent": 7.0})
    page_centre.hear("north")
    with page_serving(monitor) as address:
        page = opened(f"{address}/runs/pilot")
        page.route("**/update*", lambda route: route.abort())
        contact = page.locator('tr[data-key="north"] .contact')
        colours = []
        for word in ("connected", "late", "silent"):
            expect(contact).to_have_attribute("data-contact", word)
            expect(contact).to_have_text(word)
            colours.append(contact.evaluate("node => getComputedStyle(node).color"))
        assert len(set(colours)) == 3
        page_centre.hear("north", ago=-30.0)
        page.unroute("**/update*")
        expect(contact).to_have_text("connected")


def test_what_a_reader_does_survives_an_update(opened: Any, address: str, page_live: Any) -> None:
    page = opened(f"{address}/runs/pilot")
    draw_all(page)
    details = page.locator('[data-figure="curve"] details').first
    details.locator("summary").click()
    choice = page.locator("#matrix-finding, #finding").first
    choice.focus()
    at = page.evaluate("scrollY")
    node = page.locator('tr[data-key="south"]').element_handle()
    for site in ("east", MARKUP):
        page_live.answer(3, site)
    page_live.commit(3)
    expect(page.locator(".under strong")).to_have_text("3")
    assert details.evaluate("node => node.open") is True
    assert page.evaluate("document.activeElement.matches('select')")
    assert abs(page.evaluate("scrollY") - at) < 80
    assert page.locator('tr[data-key="south"]').evaluate("(node, before) => node === before", node)


def test_a_lost_connection_is_said_and_found_again(
    page_live: Any, page_centre: Any, page_serving: Any, opened: Any
) -> None:
    with page_serving(Monitor(Runs.of_centre(page_centre.folder))) as address:
        page = opened(f"{address}/runs/pilot")
        expect(page.locator("[data-connection]")).to_have_text("live")
    port = int(address.rpartition(":")[2])
    expect(page.locator("[data-connection]")).to_contain_text("connection lost, last update ")
    with page_serving(Monitor(Runs.of_centre(page_centre.folder)), port):
        expect(page.locator("[data-connection]")).to_have_text("live", timeout=20_000)


def test_markup_in_a_name_is_text_everywhere(opened: Any, address: str, page_live: Any) -> None:
    page_live.whole_round(3)
    page_live.test()
    page = opened(f"{address}/runs/pilot?metric=loss")
    draw_all(page)
    assert page.locator("main img").count() == 0 and page.locator("svg image[href='x']").count() == 0
    expect(page.locator("tbody th", has_text=MARKUP).first).to_be_visible()
    page.locator("#matrix-site").select_option(MARKUP)
    page.wait_for_url("**site=%3Cimg*")
    expect(page.locator('[data-figure="reliability"] [data-alt]')).to_contain_text(MARKUP)
    drawn = page.locator('[data-figure="weights"] svg').evaluate_all(
        "nodes => nodes.map(n => n.textContent).join(' ')"
    )
    assert "<img" in drawn
    assert "onerror" not in page.evaluate(
        "[...document.querySelectorAll('*')].flatMap(n => n.getAttributeNames())"
    )


def test_figures_are_drawn_in_the_themes_colours(opened: Any, address: str) -> None:
    page = opened(f"{address}/runs/pilot#aggregation", color_scheme="light")
    figure = page.locator('[data-figure="weights"]')
    figure.scroll_into_view_if_needed()
    label = figure.locator(".xtick text").first
    ink = "n => getComputedStyle(n).color"
    light = page.locator("body").evaluate(ink)
    expect(label).to_have_css("fill", light)
    page.locator("[data-set=theme]").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    dark = page.locator("body").evaluate(ink)
    assert dark != light
    expect(label).to_have_css("fill", dark)
    assert "var:" not in page.evaluate(
        "JSON.stringify([...document.querySelectorAll('.plot')].map(p => [p.data, p.layout]))"
    )


def test_figures_fill_their_frames_whatever_is_hidden_beside_them(opened: Any, address: str) -> None:
    page = opened(f"{address}/runs/pilot")
    draw_all(page)
    page.set_viewport_size({"width": 1000, "height": 700})
    for plot in page.locator("figure:not([hidden]) .plot").all():
        expect(plot.locator(".main-svg").first).to_have_js_property(
            "clientWidth", plot.evaluate("n => n.clientWidth")
        )


def test_the_theme_is_remembered_and_stands_in_the_address(opened: Any, address: str) -> None:
    page = opened(f"{address}/", color_scheme="light")
    page.locator("[data-set=theme]").click()
    assert "theme=dark" in page.url
    page.goto(f"{address}/runs/pilot")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.locator("[data-set=projector]").click()
    assert "projector=1" in page.url
    assert page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") > 18
    expect(page.locator("#downloads")).to_be_hidden()


def test_choosing_changes_the_figure_and_the_address_without_a_reload(opened: Any, address: str) -> None:
    page = opened(f"{address}/runs/pilot")
    page.evaluate("window.mine = 1")
    page.locator(".tabs a", has_text="Training loss").click()
    expect(page.locator('[data-figure="curve"] h3')).to_contain_text("Training loss")
    assert "metric=loss" in page.url
    page.locator(".tabs a", has_text="PR-AUC").click()
    page.locator("#finding").select_option("edema")
    page.wait_for_url("**finding=edema*")
    expect(page.locator('[data-figure="curve"] caption').first).to_contain_text("PR-AUC of edema")
    page.locator(".sites thead a", has_text="AUROC").click()
    expect(page.locator(".sites [aria-sort]")).to_contain_text("AUROC")
    assert page.evaluate("window.mine") == 1
    page.reload()
    expect(page.locator("#finding")).to_have_value("edema")


def test_everything_can_be_read_without_a_script(opened: Any, address: str) -> None:
    page = opened(f"{address}/runs/pilot", java_script_enabled=False)
    expect(page.locator(".lead")).to_contain_text("Round 3 of 8")
    page.locator(".tabs a", has_text="Training loss").click()
    expect(page.locator('[data-figure="curve"] h3')).to_contain_text("Training loss")
    page.locator("#matrix-finding, #round").first.select_option(index=1)
    page.locator("#round + button").click()
    expect(page.locator("#aggregation")).to_contain_text("How the updates of round")
    expect(page.locator('[data-figure="curve"] details').first).to_be_visible()


def test_the_keyboard_reaches_the_content_first(opened: Any, address: str) -> None:
    page = opened(f"{address}/runs/pilot")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.evaluate(
        """() => {
            window.reached = new Set();
            addEventListener("focusin", event => reached.add(event.target.closest("section")?.id || ""));
        }"""
    )
    for _ in range(100):
        page.keyboard.press("Tab")
    reached = set(page.evaluate("[...reached]"))
    assert {"sites", "curves", "aggregation", "plan", "downloads"} <= reached


def test_the_script_writes_times_as_the_server_does(opened: Any, address: str) -> None:
    ages = [0, 3, 59, 61, 599, 601, 3599, 3601, 7322, 86399, 86500, 172801, 10**7]
    page = opened(f"{address}/")
    page.evaluate(
        """ages => {
            for (const age of ages) {
                const time = document.createElement("time");
                time.dataset.since = Number(document.body.dataset.now) - age - 0.3;
                time.className = "mine";
                document.querySelector("main").append(time);
            }
        }""",
        ages,
    )
    expect(page.locator(".mine").first).not_to_be_empty()
    shown = page.locator(".mine").all_inner_texts()
    since = page.evaluate("performance.now() / 1000")
    for age, text in zip(ages, shown, strict=True):
        assert text in {span(age + extra) for extra in range(int(since) + 5)}


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_no_violation(
    opened: Any, address: str, page_live: Any, page_centre: Any, theme: str
) -> None:
    done = page_centre.run("done", ["north", "south", MARKUP], rounds=2)
    done.enrol()
    done.whole_round(1)
    done.whole_round(2, rejected=["south"])
    done.test()
    paths = (
        "/",
        "/runs/pilot",
        "/runs/done",
        "/compare?first=pilot&second=done",
        "/nothing",
        "/runs/pilot?projector=1",
    )
    page = opened(f"{address}/", color_scheme=theme)
    for path in paths:
        page.goto(f"{address}{path}")
        draw_all(page)
        page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
        found = Axe().run(page).response["violations"]
        told = [(each["id"], each["impact"], each["nodes"][0]["html"][:200]) for each in found]
        assert told == [], path
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
