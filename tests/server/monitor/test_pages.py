"""What the pages are made of, over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


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


def test_a_watcher_gets_what_another_was_sent_for_the_revision_it_was_told_of(
    client: httpx.Client, page_live: Any
) -> None:
    def ask(told: str | None = None, **choices: str) -> httpx.Response:
        return client.get("/runs/pilot/update", params=choices | ({} if told is None else {"told": told}))

    first = ask()
    revision = first.json()["revision"]
    page_live.answer(4, "east")
    assert ask(f"{revision}").headers["etag"] == first.headers["etag"], "the same, without a look at the run"
    assert ask(f"{revision}", metric="loss").json()["revision"] == revision
    newer = ask(f"{revision + 1}")
    assert newer.json()["revision"] > revision, "never less than it was told of"
    assert ask(f"{revision}").headers["etag"] == newer.headers["etag"]
    seen = newer.json()["revision"]
    for told in (None, "", "x", "-1", "9" * 30, "\N{SUPERSCRIPT TWO}"):
        page_live.answer(5, "east")
        before, seen = seen, ask(told).json()["revision"]
        assert seen > before, "looked at anew"


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


def test_numbers_in_an_update_are_json(client: httpx.Client) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(client.get("/runs/pilot/update").text, parse_constant=refuse)
