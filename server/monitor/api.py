"""``/api/v1``: the facts about runs as JSON, for scripts and other programs; read only.

An answer carries an ETag: a caller who sends it back as ``If-None-Match`` is told 304 while nothing has
changed, mostly without anything being computed.
"""

from __future__ import annotations

import hashlib
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from server.facts import aggregation as aggregation_facts
from server.facts import compare as compare_facts
from server.facts.curves import curve, metrics_of
from server.facts.feed import feed
from server.facts.matrix import matrix
from server.facts.plan import plan_facts
from server.facts.reliability import reliability
from server.facts.runs import Run, summary
from server.facts.sites import site_rows
from server.monitor import api_docs
from server.monitor import api_schema as schema
from server.monitor.downloads import offers
from server.monitor.problems import KnownError, NotFoundError, Problem, ProblemRoute, found_run, is_known

if TYPE_CHECKING:
    from server.monitor.state import Monitor

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such thing."},
    422: {"model": Problem, "description": "A parameter is wrong."},
    500: {"model": Problem, "description": "The ledger cannot be read."},
}
_STARTED = token_hex(4)
"""Revisions are counted anew when the monitor starts, and for every view."""

_v1 = APIRouter(prefix="/api/v1", tags=["runs"], route_class=ProblemRoute, responses=_PROBLEMS)


def _monitor(request: Request) -> Monitor:
    monitor: Monitor = request.app.state.monitor
    return monitor


def _run(request: Request, run: str) -> Run:
    return found_run(_monitor(request), run)


def _unchanging(request: Request, response: Response, run: str) -> Run:
    """Return a run whose answer depends on its ledger alone.

    Raises:
        KnownError: if the caller has the answer of this revision.
    """
    found = _run(request, run)
    view = found.view()
    moment = f"{_STARTED} {id(view)} {view.revision()}"
    tag = f'W/"{hashlib.sha256(moment.encode()).hexdigest()[:32]}"'
    if is_known(request, tag):
        raise KnownError(tag)
    response.headers["ETag"] = tag
    return found


AnyRun = Annotated[Run, Depends(_run)]
UnchangingRun = Annotated[Run, Depends(_unchanging)]
Watched = Annotated[Any, Depends(_monitor)]
Finding = Annotated[str, Query(max_length=200, description="A finding; empty: over all of them.")]


@_v1.get("/runs")
def list_runs(monitor: Watched) -> schema.RunsModel:
    """Every run, the newest first."""
    now = monitor.now()
    runs = [schema.RunModel.model_validate(summary(run, now)) for run in monitor.runs.list()]
    return schema.RunsModel(runs=runs)


@_v1.get("/runs/{run}")
def get_run(run: AnyRun, monitor: Watched) -> schema.RunDetail:
    """One run: where it stands, and what can be asked of it."""
    view = run.view()
    config = view.config()
    return schema.RunDetail(
        run=schema.RunModel.model_validate(summary(run, monitor.now())),
        metrics=metrics_of(view),
        findings=list(config.data.findings) if config is not None else [],
        sites=list(view.sites()),
        files=[offer.file for offer in offers(run)],
    )


@_v1.get("/runs/{run}/sites")
def get_sites(run: AnyRun, monitor: Watched) -> schema.SitesModel:
    """Every site of a run."""
    settings = monitor.settings
    rows = site_rows(run, monitor.now(), settings.late, settings.silent)
    return schema.SitesModel(sites=[schema.SiteModel.model_validate(row) for row in rows])


@_v1.get("/runs/{run}/curves")
def get_curve(
    run: UnchangingRun,
    metric: Annotated[str, Query(max_length=50, description="One of the run's `metrics`.")] = "auroc",
    finding: Finding = "",
) -> schema.CurveModel:
    """One figure over the rounds, at every site."""
    found = curve(run.view(), metric, finding)
    if not found.rounds:
        raise NotFoundError("there is no such curve yet; `metrics` of the run names those there are")
    return schema.CurveModel.model_validate(found)


@_v1.get("/runs/{run}/matrix")
def get_matrix(run: UnchangingRun, finding: Finding = "") -> schema.MatrixModel:
    """Every model at every site; after the test."""
    found = matrix(run.view(), finding)
    if found is None or all(value is None for row in found.values for value in row):
        raise NotFoundError("no model was tested yet, or not for this finding")
    return schema.MatrixModel.model_validate(found)


@_v1.get("/runs/{run}/reliability")
def get_reliability(
    run: UnchangingRun,
    finding: Annotated[str, Query(max_length=200, description="A finding; empty: the first there is.")] = "",
    site: Annotated[str, Query(max_length=200, description="A site; empty: all of them together.")] = "",
) -> schema.ReliabilityModel:
    """Reliability bins of every model that was tested."""
    found = reliability(run.view(), finding, site)
    if found is None:
        raise NotFoundError("there are no reliability bins yet, or none for this finding and site")
    return schema.ReliabilityModel.model_validate(found)


@_v1.get("/runs/{run}/aggregation")
def get_aggregation(
    run: UnchangingRun,
    round: Annotated[int | None, Query(ge=1, le=10**9, description="A round; else the newest.")] = None,
) -> schema.AggregationModel:
    """How a round's updates became one."""
    found = aggregation_facts.aggregation(run.view(), round)
    if found is None:
        raise NotFoundError("no such round was aggregated")
    return schema.AggregationModel.model_validate(found)


@_v1.get("/runs/{run}/events")
def get_events(
    run: UnchangingRun,
    after: Annotated[int, Query(ge=0, le=2**62, description="The `next` of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events of a page.")] = 200,
) -> schema.EventsModel:
    """What happened, in order, page by page."""
    view = run.view()
    events = view.events(after, limit)
    last = events[-1].id if events else after
    told = [entry for entry in feed(view, last + 1, len(events)) if entry.id > after] if events else []
    return schema.EventsModel(
        events=[schema.EventModel.model_validate(entry) for entry in reversed(told)],
        next=last,
        more=len(events) == limit and bool(view.events(last, 1)),
    )


@_v1.get("/runs/{run}/plan")
def get_plan(run: UnchangingRun) -> schema.PlanModel:
    """What a run does, and what it is made of."""
    found = plan_facts(run.view())
    if found is None:
        raise NotFoundError("the plan of this run cannot be read")
    return schema.PlanModel.model_validate(found)


@_v1.get("/compare")
def get_comparison(
    request: Request,
    monitor: Watched,
    first: Annotated[str, Query(max_length=200, description="Key of a run.")],
    second: Annotated[str, Query(max_length=200, description="Key of another.")],
) -> schema.ComparisonModel:
    """Two runs side by side."""
    found = compare_facts.compare(_run(request, first), _run(request, second), monitor.now())
    return schema.ComparisonModel.model_validate(found)


router = APIRouter()
router.include_router(_v1)
router.include_router(api_docs.router)
