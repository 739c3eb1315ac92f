"""/metrics, held against two parsers we did not write and against the ledger itself."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from server.facts.runs import Runs
from server.monitor.metric_families import FAMILIES
from server.monitor.state import Monitor
from simulations.benchmarks.large_ledger import write_large_ledger

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TERRIBLE = 'no"rth\\\n{run="x"} 1 # HELP <b>'
"""What a label value must survive: the format's own marks."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    write_large_ledger(folder, rounds=9, sites=5, findings=3)
    return folder


@pytest.fixture
def monitor(finished: Path) -> Iterator[Monitor]:
    end = ask(finished, "SELECT max(time) FROM events")[0][0]
    made = Monitor(Runs.of_folder(finished.parent), clock=lambda: end + 60.0)
    yield made
    made.runs.close()


def ask(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        return ledger.execute(query).fetchall()


@pytest.fixture
def scrape(page_serving: Any) -> Callable[..., str]:
    """Serves a monitor and asks it for its metrics."""

    def ask_for(monitor: Monitor, accept: str = "") -> str:
        with page_serving(monitor) as address:
            answer = httpx.get(f"{address}/metrics", headers={"Accept": accept}, timeout=60)
        assert answer.status_code == 200, answer.text
        kind = "application/openmetrics-text" if accept else "text/plain"
        assert answer.headers["content-type"].startswith(kind)
        return answer.text

    return ask_for


@pytest.fixture
def told(scrape: Callable[..., str]) -> Callable[[Monitor], Samples]:
    return lambda monitor: samples_of(text_string_to_metric_families(scrape(monitor)))


def samples_of(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"told twice: {key}"
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def test_both_formats_are_read_by_the_client_librarys_parsers_and_say_the_same(
    monitor: Monitor, told: Callable[[Monitor], Samples], scrape: Callable[..., str]
) -> None:
    plain = told(monitor)
    strict = samples_of(openmetrics.text_string_to_metric_families(scrape(monitor, OPENMETRICS)))
    assert plain == strict
    assert len(plain) > 150


def test_names_keep_the_rules_that_promtool_checks(monitor: Monitor, scrape: Callable[..., str]) -> None:
    """https://prometheus.io/docs/practices/naming and promtool's lint: help, suffixes, base units."""
    text = scrape(monitor)
    assert text.endswith("\n")
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        stored = {sample.name for sample in family.samples} or {family.name}
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge"), family.name
        for name in stored:
            assert re.fullmatch(r"fedcxr_[a-z]+(_[a-z]+)*", name), name
            assert name.endswith("_total") == (family.type == "counter"), name
            parts = set(name.split("_"))
            assert not parts & {"gauge", "counter", "summary", "histogram", "count", "sum", "bucket"}, name
            units = {"s", "sec", "ms", "milliseconds", "minutes", "hours", "kb", "kilobytes", "mb", "percent"}
            assert not parts & units, name
        for sample in family.samples:
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels), sample
            assert all(label_value for label_value in sample.labels.values()), sample


def test_every_family_is_declared_and_every_declared_one_is_announced(
    monitor: Monitor, scrape: Callable[..., str]
) -> None:
    announced = re.findall(r"^# HELP (\S+) (.*)$", scrape(monitor), re.MULTILINE)
    assert announced == [(family.name, family.about) for family in FAMILIES]


def test_the_numbers_are_the_ledgers(
    monitor: Monitor, finished: Path, told: Callable[[Monitor], Samples]
) -> None:
    samples = told(monitor)
    records = [json.loads(text) for (text,) in ask(finished, "SELECT record FROM rounds ORDER BY round")]
    assert value(samples, "fedcxr_run_state", run="first", state="finished") == 1
    assert value(samples, "fedcxr_run_state", run="first", state="training") == 0
    assert value(samples, "fedcxr_run_round", run="first") == len(records)
    for direction in ("up", "down"):
        expected = sum(record[direction] for record in records)
        assert value(samples, "fedcxr_run_bytes_total", run="first", direction=direction) == expected
    statuses = Counter(record["status"] for record in records)
    for status in ("committed", "abandoned"):
        found = value(samples, "fedcxr_run_rounds_total", run="first", status=status)
        assert found == statuses[status]
    for site in records[0]["cohort"]:
        rejected = sum(site in record["rejected"] for record in records)
        outcomes = {"rejected": rejected, "missing": sum(site in record["missing"] for record in records)}
        outcomes["returned"] = sum(site in record["returned"] for record in records)
        for outcome, expected in outcomes.items():
            labels = {"run": "first", "site": site, "outcome": outcome}
            assert value(samples, "fedcxr_site_updates_total", **labels) == expected
    assert value(samples, "fedcxr_run_lora_error", run="first") == pytest.approx(records[-1]["lora_error"])


def test_only_the_newest_auroc_of_each_site_and_finding_is_told(
    monitor: Monitor, finished: Path, told: Callable[[Monitor], Samples]
) -> None:
    query = (
        "SELECT site, finding, value FROM measures AS m WHERE name = 'auroc' AND finding != '' AND round ="
        " (SELECT max(round) FROM measures WHERE (name, finding, site) = (m.name, m.finding, m.site))"
    )
    expected = {(site, finding): auroc for site, finding, auroc in ask(finished, query)}
    found = {
        (dict(labels)["site"], dict(labels)["finding"]): auroc
        for (name, labels), auroc in told(monitor).items()
        if name == "fedcxr_site_finding_auroc"
    }
    assert found == expected
    assert len(found) >= 14


def test_mean_and_worst_are_of_the_sites(
    monitor: Monitor, finished: Path, told: Callable[[Monitor], Samples]
) -> None:
    query = "SELECT metrics FROM evaluations WHERE arm = 'federated' AND split = 'test'"
    tested = [json.loads(text)["macro-auroc"] for (text,) in ask(finished, query)]
    samples = told(monitor)
    mean = value(samples, "fedcxr_run_auroc_mean", run="first", split="test")
    assert mean == pytest.approx(sum(tested) / len(tested))
    assert value(samples, "fedcxr_run_auroc_worst", run="first", split="test") == min(tested)


def test_a_live_run_says_whom_it_waits_for(
    page_live: Any, page_monitor: Monitor, told: Callable[[Monitor], Samples]
) -> None:
    samples = told(page_monitor)
    assert value(samples, "fedcxr_run_state", run="pilot", state="training") == 1
    assert value(samples, "fedcxr_run_waiting_sites", run="pilot") == 2
    asked = {
        dict(labels)["site"] for name, labels in samples if name == "fedcxr_site_asked_timestamp_seconds"
    }
    assert asked == {*page_live.sites} - {"north", "south"}
    contacts = {"north": "connected", "east": "late", page_live.sites[3]: "silent"}
    for site, contact in contacts.items():
        assert value(samples, "fedcxr_site_contact", run="pilot", site=site, contact=contact) == 1
    heard = value(samples, "fedcxr_site_last_heard_timestamp_seconds", run="pilot", site="east")
    assert heard == pytest.approx(time.time() - 31.0, abs=20.0)


def test_any_text_survives_as_a_label(
    page_centre: Any, page_monitor: Monitor, told: Callable[[Monitor], Samples], scrape: Callable[..., str]
) -> None:
    run = page_centre.run("odd", ["south", TERRIBLE])
    run.enrol()
    run.whole_round(1)
    run.ledger.put("report", {"title": TERRIBLE})
    samples = told(page_monitor)
    strict = samples_of(openmetrics.text_string_to_metric_families(scrape(page_monitor, OPENMETRICS)))
    for found in (samples, strict):
        assert value(found, "fedcxr_site_update_norm", run="odd", site=TERRIBLE) == pytest.approx(1.6)
        titles = {dict(labels)["title"] for name, labels in found if name == "fedcxr_run_info"}
        assert titles == {TERRIBLE}


def test_a_run_of_yesterday_is_counted_and_not_told(
    finished: Path, told: Callable[[Monitor], Samples]
) -> None:
    end = ask(finished, "SELECT max(time) FROM events")[0][0]
    samples = told(Monitor(Runs.of_folder(finished.parent), clock=lambda: end + 25 * 3600.0))
    assert value(samples, "fedcxr_runs", state="finished") == 1
    assert not [name for name, _ in samples if name.startswith(("fedcxr_run_", "fedcxr_site_"))]


def test_a_run_that_cannot_be_read_does_not_hide_the_others(
    finished: Path, tmp_path: Path, told: Callable[[Monitor], Samples]
) -> None:
    (tmp_path / "good").symlink_to(finished)  # not followed: the copy is what counts
    for name, content in (("whole", (finished / "ledger.sqlite").read_bytes()), ("torn", b"no ledger" * 999)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.sqlite").write_bytes(content)
    end = ask(finished, "SELECT max(time) FROM events")[0][0]
    samples = told(Monitor(Runs.of_folder(tmp_path), clock=lambda: end))
    assert {dict(labels)["run"] for name, labels in samples if name == "fedcxr_run_round"} == {"whole"}


def test_new_rounds_are_told_at_the_next_scrape(
    page_live: Any, page_monitor: Monitor, page_serving: Any
) -> None:
    with page_serving(page_monitor) as address:

        def committed() -> float | None:
            families = text_string_to_metric_families(httpx.get(f"{address}/metrics", timeout=60).text)
            return value(samples_of(families), "fedcxr_run_rounds_total", run="pilot", status="committed")

        assert committed() == 2
        page_live.commit(3, missing=["east"])
        assert committed() == 3


def test_nothing_is_kept_in_the_processes_own_registry(monitor: Monitor, scrape: Callable[..., str]) -> None:
    scrape(monitor)
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("fedcxr")]


def test_the_guide_lists_every_metric_as_it_is(repository: Path) -> None:
    guide = (repository / "docs" / "monitor-machines.md").read_text()
    rows = re.findall(r"^\| `(fedcxr_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", guide, re.MULTILINE)
    listed = {name: (kind, labels, about) for name, kind, labels, about in rows}
    assert listed == {
        family.name: (family.kind, ", ".join(f"`{label}`" for label in family.labels), family.about)
        for family in FAMILIES
    }
