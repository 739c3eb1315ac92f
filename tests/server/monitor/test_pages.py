"""The pages in a real browser, and what they are made of over HTTP."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from server.facts.runs import Runs
from server.monitor.fresh import Answer, Answers
from server.monitor.state import Monitor
from server.monitor.wording import span

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def address(page_live: Any, page_monitor: Monitor, page_serving: Any) -> Iterator[str]:
    """Where a centre with a run under way is shown."""
    with page_serving(page_monitor) as served:
        yield served


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address) as client:
        yield client


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


# ---- over HTTP


def test_an_update_is_one_json_that_is_not_sent_twice(client: httpx.Client, page_live: Any) -> None:
    first = client.get("/runs/pilot/update")
    body = first.json()
    assert {"headline", "sites", "curves", "matrix", "aggregation", "events", "plan", "downloads"} <= set(
        body["parts"]
    )
    assert {"revision", "parts", "figures"} <= set(body) and {"curve", "weights"} <= set(body["figures"])
    assert first.headers["content-encoding"] == "gzip"
    # until the next tick the same bytes, so the tag holds
    again = [
        client.get("/runs/pilot/update", headers={"If-None-Match": first.headers["etag"]}) for _ in range(2)
    ]
    assert 304 in [answer.status_code for answer in again]
    page_live.answer(3, "east")
    news = client.get("/runs/pilot/update", headers={"If-None-Match": first.headers["etag"]})
    assert news.status_code == 200 and news.json()["revision"] > body["revision"]


def test_the_update_tells_what_the_page_shows(client: httpx.Client) -> None:
    """Whoever has no script and whoever has one read the same."""
    page = client.get("/runs/pilot").text
    parts = client.get("/runs/pilot/update").json()["parts"]
    ages = re.compile(r">[\d.]+ (?:s|min|h|day)[^<]*<|data-now=\"[^\"]*\"")
    for name in ("curves", "plan", "downloads", "aggregation"):
        assert ages.sub("", parts[name]) in ages.sub("", page), name


def test_choices_travel_in_the_address(client: httpx.Client) -> None:
    html = client.get("/runs/pilot?metric=loss&site=north&theme=dark").text
    assert '<html lang="en" data-theme="dark">' in html
    assert 'href="?metric=pr-auc&amp;site=north&amp;theme=dark#curves"' in html
    assert "Training loss: mean" in html


def test_an_unknown_run_is_told_in_words(client: httpx.Client) -> None:
    answer = client.get("/runs/nothing")
    assert answer.status_code == 404 and "no such run" in answer.text and "<h1>" in answer.text
    assert client.get("/runs/nothing/update").status_code == 404
    assert client.get("/compare", params={"first": "pilot", "second": "x"}).status_code == 404
    assert client.get("/compare").status_code == 404


def test_two_runs_are_compared_whatever_is_switched(client: httpx.Client) -> None:
    html = client.get("/compare?first=pilot&second=pilot&metric=loss").text
    assert "Same settings; no site is measured in both yet." in html and "ComparedSite" not in html
    link = re.search(r'href="([^"]*)" data-set="theme"', html)
    assert link is not None
    switched = client.get("/compare" + link[1].replace("&amp;", "&")).text
    assert 'data-theme="dark"' in switched and 'value="loss" selected' in switched


def test_every_link_of_a_finished_run_leads_somewhere(page_live: Any, client: httpx.Client) -> None:
    page_live.whole_round(3)
    page_live.test()
    html = client.get("/runs/pilot").text
    links = {link.replace("&amp;", "&") for link in re.findall(r'(?:href|src)="(/[^"#]*)', html)}
    assert len(links) > 15 and "/runs/pilot/download/plan.toml" in links
    for link in sorted(link for link in links if not link.endswith(".parquet")):  # made on the disk, slowly
        assert client.get(link, follow_redirects=True).status_code == 200, link
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    assert set(re.findall(r'href="[^"]*#([^"]+)"', html)) <= ids


def test_a_head_is_answered(client: httpx.Client) -> None:
    for path in ("/", "/runs/pilot", "/static/monitor.css"):
        assert client.head(path).status_code == 200


def test_many_watchers_cost_one_computation() -> None:
    answers, made = Answers(), []
    gate = threading.Barrier(50)

    def make() -> bytes:
        made.append(1)
        time.sleep(0.1)
        return b"figures"

    def ask(_: int) -> object:
        gate.wait()
        return answers.get("key", make)

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(ask, range(50))) == {b"figures"}
    assert len(made) == 1


def test_answers_kept_are_bounded_in_bytes_and_the_oldest_goes_first() -> None:
    answers = Answers(most=10_000)
    for i in range(100):
        answers.get(i, lambda: b"x" * 1000)
        answers.get(0, lambda: b"y" * 1000)  # used all the time, so it stays
    assert answers.size <= 10_000
    before = answers.made
    answers.get(0, lambda: b"")
    answers.get(99, lambda: b"")
    assert answers.made == before
    answers.get(50, lambda: b"again")
    assert answers.made == before + 1


def test_a_failure_is_not_kept() -> None:
    answers = Answers()

    def fail() -> bytes:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - ours
        answers.get("key", fail)
    assert answers.get("key", lambda: b"fine") == b"fine"


def test_equal_bodies_have_equal_tags() -> None:
    assert Answer.of(b"a").tag == Answer.of(b"a").tag != Answer.of(b"b").tag


# ---- in a browser


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


@pytest.mark.parametrize("theme", ["light", "dark"])
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


def test_numbers_in_an_update_are_json(client: httpx.Client) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(client.get("/runs/pilot/update").text, parse_constant=refuse)
