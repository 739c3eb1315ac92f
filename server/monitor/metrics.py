"""``/metrics``: the runs, for Prometheus.

Names are stable: what a dashboard or an alert is built on is not renamed. Everything is read when it
is asked for; a run that nobody works on and that has not changed for a day is left out, so that old
runs do not make the series of new ones slow. Of a figure that has one value per round only the newest
is told: the history is Prometheus' to keep.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from common.errors import FedcxrError
from server.facts.history import History
from server.facts.records import Contact, SiteRow, State
from server.facts.runs import summary
from server.facts.sites import site_rows
from server.monitor.healthz import recent_checks
from server.monitor.metric_families import FAMILIES, Family, Labels

if TYPE_CHECKING:
    from server.facts.records import RunSummary
    from server.facts.runs import Run
    from server.facts.view import LedgerView
    from server.monitor.state import Monitor

router = APIRouter()

KEPT_SECONDS = 24 * 3600.0
"""For how long after its last change a run that is over, or left, is told of."""
KEPT_ROUNDS = 50
"""For how many rounds a site's AUROC of a finding is told while no newer one comes."""

_OVER = {"finished", "failed", "stopped", "idle"}
_STATES: tuple[str, ...] = get_args(State)
_CONTACTS: tuple[str, ...] = get_args(Contact)
_OUTCOMES = ("returned", "missing", "rejected")
_OF_FEDERATION = {
    "lora-error": "lora_error",
    "aggregate-norm": "aggregate_norm",
    "seconds": "round_seconds",
}
"""Measure of the whole federation -> its metric, without the prefix."""
_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}

Sample = tuple[str, Labels, float | None]
"""Name of a family, label values, value; None: there is none now."""


@dataclass(frozen=True)
class Newest:
    """What only the ledger itself can tell quickly: counts of rounds, and the newest of a figure."""

    rounds: dict[str, int]
    """Status -> rounds."""
    findings: dict[tuple[str, str], float]
    """(site, finding) -> newest AUROC."""
    federation: dict[str, float]
    """Name of a measure of the whole federation -> its newest value."""
    tested: dict[str, float]
    """Site -> macro AUROC of the federated model on its test studies."""


@dataclass(eq=False)
class RunCollector:
    """Reads runs when Prometheus asks; holds a little of each that has not changed since."""

    monitor: Monitor
    centre_up: float | None = None
    """Set before every scrape."""
    _known: dict[str, tuple[int, Newest]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, with the samples there are."""
        with self._lock:
            families = {family.name: _empty(family) for family in FAMILIES}
            for name, labels, value in self._samples():
                if value is not None and math.isfinite(value):
                    _add(families[name], labels, value)
        yield from families.values()

    def _samples(self) -> Iterator[Sample]:
        now = self.monitor.now()
        yield "fedcxr_monitor_info", (version("fedcxr"),), 1.0
        yield "fedcxr_centre_up", (), self.centre_up
        states: Counter[str] = Counter()
        runs = self.monitor.runs.list()
        self._known = {run.key: self._known[run.key] for run in runs if run.key in self._known}
        for run in runs:
            try:
                told = summary(run, now)
                states[told.standing.state] += 1
                if told.standing.state in _OVER and now - (told.changed or 0.0) > KEPT_SECONDS:
                    continue
                # Whole before any of it is told: a run whose ledger breaks midway is left out.
                samples = list(_run_samples(told, site_rows(run, now), self._newest(run)))
            except (FedcxrError, OSError):
                continue
            yield from samples
        for state in _STATES:
            yield "fedcxr_runs", (state,), states[state]

    def _newest(self, run: Run) -> Newest:
        view = run.view()
        revision = view.revision()
        known = self._known.get(run.key)
        if known is None or known[0] != revision:
            known = self._known[run.key] = (revision, _read_newest(view))
        return known[1]


def _read_newest(view: LedgerView) -> Newest:
    with view.still():
        history = view.keep(History)
        abandoned = len(history.abandoned)
        rounds = {"committed": len(history.rounds) - abandoned, "abandoned": abandoned}
    query = (
        "SELECT site, json_extract(metrics, '$.macro-auroc') FROM evaluations"
        " WHERE arm = 'federated' AND split = 'test'"
    )
    tested = {row[0]: row[1] for row in view.rows(query) if row[1] is not None}
    query = (
        "SELECT site, value FROM measures WHERE name = 'auroc' AND finding = ? AND round > ? AND site != ''"
        " ORDER BY round"
    )
    reach = view.last_round() - KEPT_ROUNDS
    aurocs = {
        (site, finding): value
        for finding in view.findings("auroc")
        for site, value in dict(view.rows(query, (finding, reach))).items()
    }
    query = (
        "SELECT value FROM measures WHERE name = ? AND finding = '' AND site = '' ORDER BY round DESC LIMIT 1"
    )
    found = {name: view.rows(query, (name,)) for name in _OF_FEDERATION}
    federation = {name: rows[0][0] for name, rows in found.items() if rows}
    return Newest(rounds, aurocs, federation, tested)


def _run_samples(told: RunSummary, rows: list[SiteRow], newest: Newest) -> Iterator[Sample]:
    run, standing = told.key, told.standing
    yield "fedcxr_run_info", (run, told.title, told.method, told.backbone), 1.0
    for state in _STATES:
        yield "fedcxr_run_state", (run, state), float(state == standing.state)
    single: dict[str, float | None] = {
        "started_timestamp_seconds": told.started,
        "changed_timestamp_seconds": told.changed,
        "stage_timestamp_seconds": standing.since,
        "deadline_timestamp_seconds": standing.deadline,
        "round": standing.round,
        "rounds_planned": standing.rounds,
        "sites": told.sites,
        "waiting_sites": len(standing.waiting),
        "warnings_total": told.warnings,
    }
    single |= {_OF_FEDERATION[name]: value for name, value in newest.federation.items()}
    for name, value in single.items():
        yield f"fedcxr_run_{name}", (run,), value
    for status in ("committed", "abandoned"):
        yield "fedcxr_run_rounds_total", (run, status), newest.rounds.get(status, 0)
    for direction, count in (("up", told.up), ("down", told.down)):
        yield "fedcxr_run_bytes_total", (run, direction), count
    validated = [row.auroc for row in rows if row.auroc is not None]
    for split, values in (("validation", validated), ("test", list(newest.tested.values()))):
        if values:
            yield "fedcxr_run_auroc_mean", (run, split), fmean(values)
            yield "fedcxr_run_auroc_worst", (run, split), min(values)
    asked = {waiting.site: waiting.since for waiting in standing.waiting}
    for row in rows:
        yield from _site_samples(run, row, asked.get(row.name))
    for (site, finding), value in newest.findings.items():
        yield "fedcxr_site_finding_auroc", (run, site, finding), value


def _site_samples(run: str, row: SiteRow, asked: float | None) -> Iterator[Sample]:
    site = (run, row.name)
    for contact in _CONTACTS:
        yield "fedcxr_site_contact", (*site, contact), float(contact == row.contact)
    single: dict[str, float | None] = {
        "last_heard_timestamp_seconds": row.heard,
        "asked_timestamp_seconds": asked,
        "set_aside_studies": row.set_aside,
        "round_seconds": row.seconds,
        "update_norm": row.update_norm,
        "cosine": row.cosine,
        "weight_ratio": row.weight,
        "auroc": row.auroc,
        "auroc_gain": row.gain[0] if row.gain else None,
    }
    for name, value in single.items():
        yield f"fedcxr_site_{name}", site, value
    studies = {
        "train": row.train_studies,
        "validation": row.validation_studies,
        "test": row.test_studies,
    }
    for split, count in studies.items():
        yield "fedcxr_site_studies", (*site, split), count
    outcomes = Counter(row.participation)
    for outcome in _OUTCOMES:
        yield "fedcxr_site_updates_total", (*site, outcome), outcomes[outcome]
    for direction, count in (("up", row.up), ("down", row.down)):
        yield "fedcxr_site_bytes_total", (*site, direction), count


_KINDS: dict[str, type[Metric]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "info": InfoMetricFamily,
}


def _empty(family: Family) -> Metric:
    name = family.name.removesuffix("_info" if family.kind == "info" else "_total")
    return _KINDS[family.kind](name, family.about, labels=family.labels)  # type: ignore[call-arg]


def _add(family: Any, labels: Labels, value: float) -> None:
    if isinstance(family, InfoMetricFamily):
        family.add_metric((), dict(zip(family._labelnames, labels, strict=True)))
    else:
        family.add_metric(labels, value)


@router.get("/metrics", tags=["metrics"], response_class=Response, responses=_DOCUMENTED)
def metrics(request: Request) -> Response:
    """Tell Prometheus of every run that is live or has changed within a day.

    In OpenMetrics where `Accept` asks for it, else in Prometheus' text format.
    """
    state = request.app.state
    collector: RunCollector | None = getattr(state, "metrics", None)
    if collector is None:
        collector = state.metrics = RunCollector(state.monitor)
    up = recent_checks(state).get("centre")
    collector.centre_up = None if up is None else float(up())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Cache-Control": "no-store"}, media_type=content_type)


@router.get("/grafana.json", include_in_schema=False)
def grafana() -> Response:
    """Hand out a dashboard that Grafana imports."""
    board = files("server.monitor").joinpath("grafana/dashboard.json").read_bytes()
    headers = {"Content-Disposition": 'attachment; filename="fedcxr-dashboard.json"'}
    return Response(board, headers=headers, media_type="application/json")
