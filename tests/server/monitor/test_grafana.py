"""The dashboard: it loads, and every metric it asks for is one that a real scrape has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import httpx
import pytest

from server.measures import Measure
from server.monitor.metric_families import FAMILIES
from server.monitor.state import Monitor

METRIC = re.compile(r"\bfedcxr_\w+")


@pytest.fixture
def client(page_live: Any, page_monitor: Monitor, page_serving: Any) -> Iterator[httpx.Client]:
    page_live.ledger.put_evaluation(
        "federated", "test", "north", {"macro-auroc": 0.8, "gain.macro": [0.1, 0.0, 0.2]}
    )
    page_live.ledger.put_measures([Measure("aggregate-norm", "", "", 2, 1.4)])
    with page_serving(page_monitor) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture
def board(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/grafana.json")
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.content)


def expressions(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (variable.get("definition", "") for variable in board["templating"]["list"])


def test_every_metric_it_names_is_in_a_real_scrape(board: dict[str, Any], client: httpx.Client) -> None:
    scraped = {line.split("{")[0].split(" ")[0] for line in client.get("/metrics").text.splitlines()}
    named = {name for expression in expressions(board) for name in METRIC.findall(expression)}
    only_of_a_centre = {"fedcxr_centre_up"}  # a test of the health checks has one
    assert named - only_of_a_centre <= scraped
    assert len(named) > 25


def test_every_metric_is_shown(board: dict[str, Any]) -> None:
    named = {name for expression in expressions(board) for name in METRIC.findall(expression)}
    assert {family.name for family in FAMILIES} - named == {"fedcxr_monitor_info"}


def test_labels_in_expressions_are_the_metrics_own(board: dict[str, Any]) -> None:
    labels = {family.name: {*family.labels} for family in FAMILIES}
    for expression in expressions(board):
        for name, selector in re.findall(r"(fedcxr_\w+)\{([^}]*)\}", expression):
            assert {*re.findall(r"(\w+)\s*(?:=~|!=|=)", selector)} <= labels[name], expression
        for panel_label in re.findall(r"label_values\((fedcxr_\w+)(?:\{[^}]*\})?, (\w+)\)", expression):
            assert panel_label[1] in labels[panel_label[0]]


def test_legends_name_labels_that_the_expression_has(board: dict[str, Any]) -> None:
    labels = {family.name: {*family.labels} for family in FAMILIES}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            known = set().union(*(labels[name] for name in METRIC.findall(target["expr"])))
            assert {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])} <= known, panel["title"]


def test_the_data_source_is_a_variable_everywhere(board: dict[str, Any]) -> None:
    assert board["templating"]["list"][0]["name"] == "DS_PROMETHEUS"
    for panel in board["panels"]:
        for part in (panel, *panel.get("targets", ())):
            if panel["type"] != "row":
                assert part["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


def test_panels_have_their_own_place_and_number(board: dict[str, Any]) -> None:
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for first, second in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            first["x"] + first["w"] <= second["x"]
            or second["x"] + second["w"] <= first["x"]
            or first["y"] + first["h"] <= second["y"]
            or second["y"] + second["h"] <= first["y"]
        )
        assert apart, (first, second)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(panel.get("description") for panel in panels if panel["type"] != "row")
