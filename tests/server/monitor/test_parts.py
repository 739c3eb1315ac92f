"""The parts of a page: complete in every state of a run, sorted as asked, and nothing in them but text."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from server.facts.records import SiteRow
from server.facts.runs import Run, Runs
from server.measures import Measure
from server.monitor import parts
from server.monitor.address import Address
from server.monitor.wording import STATES
from tests.server.monitor.markup import MARKUP

if TYPE_CHECKING:
    from pathlib import Path


class Elements(HTMLParser):
    """Collects elements and text, and sees that every element is closed by its own end."""

    EMPTY = frozenset({"input", "img", "link", "meta", "br", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == "option" and tag == "select":
            self.open.pop()
        assert self.open and self.open[-1] == tag, (tag, self.open[-4:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def found(page_monitor: Any) -> Iterator[Any]:
    def find(name: str) -> Run:
        return page_monitor.runs.find(name)

    return find  # type: ignore[return-value]


def facts_of(run: Run, here: Address | None = None) -> parts.Facts:
    return parts.run_facts(run, here or Address(), time.time(), 20.0, 60.0)


@pytest.mark.parametrize("stage", ["empty", "begun", "enrolled", "asked", "one round", "finished"])
def test_every_part_is_whole_at_every_stage(page_centre: Any, found: Any, stage: str) -> None:
    """Undefined names are errors in our templates, so a part that is written knew all it showed."""
    run = page_centre.run("pilot", ["north", MARKUP], rounds=1)
    steps = ["empty", "begun", "enrolled", "asked", "one round", "finished"]
    far = steps.index(stage)
    if far >= 2:
        run.enrol()
    elif far == 1:
        run.ledger.event("plan", "plan aaaa: lora on embedded", digest="a" * 64, started=run.time)
    if far >= 3:
        run.ask(1)
    if far >= 4:
        run.whole_round(1)
    if far >= 5:
        run.test()
    facts = facts_of(found("pilot"))
    made = parts.run_parts(facts)
    assert set(made) == {"headline", *parts.SECTIONS} - {"privacy"}
    for name, html in made.items():
        elements = Elements(html)
        ids = [attributes["id"] for _, attributes in elements.seen if "id" in attributes]
        assert len(ids) == len(set(ids)), name
    assert ("table as" in made["curves"] or "numbers as a table" in made["curves"]) == (far >= 4)
    if far < 4:
        assert "begin when the first round" in made["curves"]
        assert "Comes with the first round" in made["aggregation"]
    assert ('data-figure="matrix"' in made["matrix"]) == (far >= 5)


def test_names_out_of_a_ledger_are_text(page_live: Any, found: Any) -> None:
    page_live.whole_round(3)
    page_live.test()
    made = parts.run_parts(facts_of(found("pilot"), Address(site=MARKUP, metric="loss")))
    for name, html in made.items():
        elements = Elements(html)
        assert "img" not in [tag for tag, _ in elements.seen], name
        assert not any(key.startswith("on") for _, attributes in elements.seen for key in attributes), name
    assert MARKUP in "".join(Elements(made["sites"]).text)
    options = [
        attributes.get("value") for tag, attributes in Elements(made["matrix"]).seen if tag == "option"
    ]
    assert MARKUP in options


def test_the_site_table_says_what_the_facts_say(page_live: Any, found: Any) -> None:
    facts = facts_of(found("pilot"))
    text = " ".join("".join(Elements(parts.run_parts(facts)["sites"]).text).split())
    assert "Rejected in round 2: the update is larger than strategy.max_update_norm" in text
    assert (
        "E_NORM" in text and "3 of 3" in text and "1 of 2, 1 missed" in text and "1 of 2, 1 rejected" in text
    )
    row = next(row for row in facts["rows"] if row.name == "north")
    assert row.update_norm is not None and f"{row.update_norm:.3f}" in text
    contacts = dict(facts["contacts"])
    assert contacts == {"connected": 2, "late": 1, "silent": 1}


def test_the_headline_counts_for_whom_it_waits_and_since_when(page_live: Any, found: Any) -> None:
    facts = facts_of(found("pilot"))
    elements = Elements(parts.run_parts(facts)["headline"])
    since = [
        float(attributes["data-since"]) for tag, attributes in elements.seen if "data-since" in attributes
    ]  # type: ignore[arg-type]
    asked = page_live.time - 4.0
    assert sum(abs(moment - asked) < 0.1 for moment in since) == 3  # the round's own age, and two sites
    text = " ".join("".join(elements.text).split())
    assert "Round 3 of 8, waiting for" in text and "Waiting for" in text and "training" in text


def test_privacy_has_a_section_only_where_it_is_measured(page_live: Any, found: Any) -> None:
    assert "privacy" not in parts.run_parts(facts_of(found("pilot")))
    page_live.ledger.put_measures([Measure("epsilon", "", "north", 2, 3.25)])
    made = parts.run_parts(facts_of(found("pilot")))
    assert "3.250" in made["privacy"] and "north" in made["privacy"]


def test_nothing_of_the_machine_is_in_a_page(page_live: Any, found: Any, tmp_path: Path) -> None:
    page_live.whole_round(3)
    page_live.test()
    for html in parts.run_parts(facts_of(found("pilot"))).values():
        assert str(tmp_path) not in html and ".sqlite" not in html


def row(name: str, **known: Any) -> SiteRow:
    blank = dict.fromkeys(SiteRow.__dataclass_fields__) | {"participation": (), "up": 0, "rejections": ()}
    return SiteRow(**(blank | {"name": name} | known))  # type: ignore[arg-type]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("sort", "field"), [("norm", "update_norm"), ("auroc", "auroc"), ("seconds", "seconds")]
)
def test_sites_are_sorted_as_asked_and_who_lacks_a_figure_is_last(
    sort: str, field: str, descending: bool
) -> None:
    values: list[float | None] = [0.5, None, 0.0, 3.0, -1.0, None, 3.0]
    rows = [row(f"s{i}", **{field: value}) for i, value in enumerate(values)]
    random.Random(0).shuffle(rows)
    here = Address(sort=sort, descending=descending)
    told = [getattr(each, field) for each in parts.sorted_sites(rows, here)]
    known = [value for value in values if value is not None]
    assert told == [*sorted(known, reverse=descending), None, None]


def test_every_order_keeps_every_site_and_the_filter_only_some() -> None:
    rows = [row("North", auroc=0.7, up=3), row("south"), row("north-west", gain=(0.1, 0.0, 0.2))]
    for sort in parts._ORDERS:
        kept = parts.sorted_sites(rows, Address(sort=sort))
        assert {each.name for each in kept} == {"North", "south", "north-west"}
    assert [each.name for each in parts.sorted_sites(rows, Address(filter=" NORTH "))] == [
        "North",
        "north-west",
    ]


@pytest.mark.parametrize("state", [*STATES])
def test_every_state_has_its_word(page_live: Any, found: Any, state: Any) -> None:
    facts = facts_of(found("pilot"))
    standing = replace(facts["summary"].standing, state=state)
    shown = facts | {"summary": replace(facts["summary"], standing=standing)}
    assert f">{STATES[state][0]}</span>" in parts.written("part_headline", shown)


def test_an_address_that_makes_no_sense_is_a_fresh_page(page_live: Any, found: Any) -> None:
    odd = {
        "metric": "../x",
        "finding": MARKUP,
        "site": "nobody",
        "round": "99",
        "sort": "up; drop",
        "events": "-1",
    }
    facts = facts_of(found("pilot"), Address.of(odd))
    assert facts["here"] == Address()


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    assert Runs.of_folder(tmp_path).list() == []
    html = parts.overview_parts([], time.time())["runs"]
    assert "Nothing has run here yet" in html and "fedcxr-simulate run" in html and "<table" not in html
