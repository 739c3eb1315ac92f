"""The JSON API: every route of its description answers as described; errors are problems."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from jsonschema import Draft202012Validator

from server.facts.runs import Runs
from server.ledger import Ledger
from server.monitor.api_docs import as_of_3_0
from server.monitor.state import Monitor
from simulations.benchmarks.large_ledger import write_large_ledger

QUERIES = {"/api/v1/compare": {"first": "first", "second": "second"}}
"""Path -> what it cannot do without."""
FACTS_OF_THE_LEDGER = ("curves", "matrix", "reliability", "aggregation", "events", "plan")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        write_large_ledger(folder / name, rounds=7, sites=5, findings=3, seed=seed)
    return folder


@pytest.fixture
def client(runs: Path, page_serving: Any) -> Iterator[httpx.Client]:
    monitor = Monitor(Runs.of_folder(runs))
    with page_serving(monitor) as address, httpx.Client(base_url=address, timeout=60) as opened:
        yield opened
    monitor.runs.close()


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def ask(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        return ledger.execute(query).fetchall()


def validate(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    whole = {**schema, "components": document["components"]}
    Draft202012Validator(whole).validate(value)


def test_only_what_programs_rely_on_is_described(document: dict[str, Any]) -> None:
    beside = {path for path in document["paths"] if not path.startswith("/api/v1/")}
    assert beside == {"/metrics", "/healthz"}
    assert len(document["paths"]) == 12
    assert all({*operations} == {"get"} for operations in document["paths"].values())
    Draft202012Validator.check_schema(document["components"]["schemas"]["CurveModel"])


def test_every_field_and_every_parameter_is_explained(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name
        for field, about in schema["properties"].items():
            assert about.get("description"), (name, field)
    for path, operations in document["paths"].items():
        assert operations["get"]["description"].endswith("."), path
        for parameter in operations["get"].get("parameters", ()):
            assert parameter.get("description") or parameter["name"] == "run", (path, parameter)


def test_every_route_answers_as_it_is_described(client: httpx.Client, document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        address = f"{path.replace('{run}', 'first')}?{urlencode(QUERIES.get(path, {}))}"
        answer = client.get(address)
        assert answer.status_code == 200, (address, answer.text)
        content = operations["get"]["responses"]["200"]["content"]
        if path == "/metrics":
            assert answer.headers["content-type"].split(";")[0] in content
            continue
        schema = content["application/json"]["schema"]
        assert "$ref" in schema, path
        validate(answer.json(), schema, document)


def test_a_field_that_is_wrong_would_be_seen(client: httpx.Client, document: dict[str, Any]) -> None:
    """The check above can fail."""
    told = client.get("/api/v1/runs/first").json()
    told["run"]["standing"]["state"] = "dancing"
    with pytest.raises(Exception, match="dancing"):
        validate(told, {"$ref": "#/components/schemas/RunDetail"}, document)


def test_no_answer_holds_a_number_that_is_none(client: httpx.Client) -> None:
    for part in ("", "/sites", *(f"/{name}" for name in FACTS_OF_THE_LEDGER)):
        text = client.get(f"/api/v1/runs/first{part}").text
        json.loads(text, parse_constant=pytest.fail)


def test_a_curve_is_the_ledgers(client: httpx.Client, runs: Path) -> None:
    for metric in ("auroc", "loss"):
        told = client.get("/api/v1/runs/first/curves", params={"metric": metric}).json()
        query = (
            f"SELECT site, round, value FROM measures WHERE name = '{metric}' AND finding = '' AND site != ''"
        )
        expected = {(site, number): value for site, number, value in ask(runs / "first", query)}
        found = {
            (site, number): value
            for site, values in told["sites"].items()
            for number, value in zip(told["rounds"], values, strict=True)
            if value is not None
        }
        assert found == pytest.approx(expected)


def test_what_is_promised_of_a_run_can_be_had(client: httpx.Client) -> None:
    told = client.get("/api/v1/runs/first").json()
    assert told["sites"] and told["findings"] and told["metrics"] and "ledger.zip" in told["files"]
    for metric in told["metrics"]:
        assert client.get("/api/v1/runs/first/curves", params={"metric": metric}).status_code == 200, metric
    assert {file for file in told["files"] if file.endswith(".parquet")}
    for file in told["files"]:
        if file.endswith(".parquet"):  # each takes a process; tests of downloads fetch them
            continue
        assert client.get(f"/runs/first/download/{file}").status_code == 200, file


def test_events_come_page_by_page_each_once(client: httpx.Client, runs: Path) -> None:
    expected = [number for (number,) in ask(runs / "first", "SELECT id FROM events ORDER BY id")]
    found: list[int] = []
    after, more = 0, True
    while more:
        page = client.get("/api/v1/runs/first/events", params={"after": after, "limit": 7}).json()
        assert len(page["events"]) <= 7
        found += [event["id"] for event in page["events"]]
        after, more = page["next"], page["more"]
    assert found == expected
    page = client.get("/api/v1/runs/first/events", params={"after": after}).json()
    assert page == {"events": [], "next": after, "more": False}


REFUSED = [
    ("/api/v1/runs/nowhere", 404, "E_UNKNOWN"),
    ("/api/v1/runs/nowhere/sites", 404, "E_UNKNOWN"),
    ("/api/v1/runs/..%2ffirst/plan", 404, None),
    ("/api/v1/runs/first/curves?metric=nonsense", 404, "E_UNKNOWN"),
    ("/api/v1/runs/first/matrix?finding=nonsense", 404, "E_UNKNOWN"),
    ("/api/v1/runs/first/reliability?site=nowhere", 404, "E_UNKNOWN"),
    ("/api/v1/runs/first/aggregation?round=99", 404, "E_UNKNOWN"),
    ("/api/v1/runs/first/aggregation?round=0", 422, "E_CONFIG"),
    ("/api/v1/runs/first/events?limit=1001", 422, "E_CONFIG"),
    ("/api/v1/runs/first/events?after=-1", 422, "E_CONFIG"),
    ("/api/v1/compare?first=first", 422, "E_CONFIG"),
    ("/api/v1/compare?first=first&second=nowhere", 404, "E_UNKNOWN"),
    (f"/api/v1/runs/first/curves?finding={'x' * 300}", 422, "E_CONFIG"),
]
"""Address, status, code; no code: the address leads nowhere at all."""


def test_errors_are_problems(client: httpx.Client, document: dict[str, Any]) -> None:
    for address, status, code in REFUSED:
        answer = client.get(address)
        assert answer.status_code == status, address
        if code is None:
            continue
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        validate(problem, {"$ref": "#/components/schemas/Problem"}, document)
        assert (problem["status"], problem["code"]) == (status, code), address


def test_a_ledger_that_cannot_be_read_is_a_problem_without_its_path(
    tmp_path: Path, page_serving: Any
) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "ledger.sqlite").write_bytes(b"this is no ledger" * 100)
    with page_serving(Monitor(Runs.of_folder(tmp_path))) as address:
        answer = httpx.get(f"{address}/api/v1/runs/torn/plan", timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (500, "E_RUN")
    assert str(tmp_path) not in answer.text


def test_who_has_the_answer_is_told_that_nothing_changed(client: httpx.Client) -> None:
    for part in ("", "/sites", *(f"/{name}" for name in FACTS_OF_THE_LEDGER)):
        address = f"/api/v1/runs/first{part}"
        answer = client.get(address)
        tag = answer.headers["etag"]
        assert answer.headers["cache-control"] == "private, no-cache"
        for given in (tag, f'"another", {tag}', tag.removeprefix("W/")):
            again = client.get(address, headers={"If-None-Match": given})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(address, headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("part", ["", *(f"/{name}" for name in ("events", "plan"))])
def test_a_change_of_the_ledger_changes_the_tag(part: str, tmp_path: Path, page_serving: Any) -> None:
    write_large_ledger(tmp_path / "first", rounds=2, sites=3, findings=2)
    address = f"/api/v1/runs/first{part}"
    monitor = Monitor(Runs.of_folder(tmp_path))
    with page_serving(monitor) as base, httpx.Client(base_url=base, timeout=60) as client:
        tag = client.get(address).headers["etag"]
        ledger = Ledger(tmp_path / "first" / "ledger.sqlite")
        ledger.event("note", "something new")
        ledger.close()
        assert client.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_markup_in_a_name_is_json_text(page_live: Any, page_monitor: Monitor, page_serving: Any) -> None:
    with page_serving(page_monitor) as address:
        answer = httpx.get(f"{address}/api/v1/runs/pilot/sites", timeout=60)
    assert page_live.sites[3] in {site["name"] for site in answer.json()["sites"]}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_fastapis_own_pages_are_not_there(client: httpx.Client) -> None:
    for address in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert client.get(address).status_code == 404


def test_the_page_and_all_it_loads_come_from_here(client: httpx.Client) -> None:
    page = client.get("/api")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|https?:", page.text)
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 5
    for link in links:
        assert client.get(link).status_code == 200, link
    assert client.get("/api/assets/swagger-ui.js").status_code == 404
    assert client.get("/api/assets/..%2f..%2f__init__.py").status_code == 404


def test_the_page_is_drawn_in_a_browser(client: httpx.Client, page_browser: Any) -> None:
    page = page_browser.new_page()
    complaints: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("data:", str(client.base_url))) or elsewhere.append(request.url)
        ),
    )
    page.goto(f"{client.base_url}/api")
    page.wait_for_selector("#operations-runs-list_runs_api_v1_runs_get", timeout=20_000)
    assert page.locator(".opblock").count() == 12
    page.click("#operations-runs-list_runs_api_v1_runs_get .opblock-summary-control")
    page.click("text=Try it out")
    page.click("text=Execute")
    page.wait_for_selector(".live-responses-table .response-col_status:has-text('200')", timeout=20_000)
    page.close()
    assert (complaints, elsewhere) == ([], [])


def test_what_the_page_reads_is_all_of_openapi_3_0(client: httpx.Client, document: dict[str, Any]) -> None:
    older = client.get("/api/assets/openapi.json").json()
    assert older == as_of_3_0(document)
    assert older["openapi"].startswith("3.0.")
    text = json.dumps(older)
    for word in ('"const"', '"prefixItems"', '"type": "null"', '"type": ['):
        assert word not in text
    assert {*older["paths"]} == {*document["paths"]}
