"""The pages people look at: the runs, one run, two runs; and what a live page asks for again.

A page comes whole from the server and can be read without a script. The script asks ``update`` for
the parts and figures of the same address whenever `server.monitor.live` says that something changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from markupsafe import Markup

from server.facts.standing import standing
from server.monitor import parts
from server.monitor.address import Address
from server.monitor.comparing import compare_facts, compare_key
from server.monitor.fresh import Answer, Answers, Moment, as_json, send
from server.monitor.layout import page
from server.monitor.watch import stamp_of
from server.monitor.wording import ACTIVE

if TYPE_CHECKING:
    from server.facts.runs import Run
    from server.monitor.figures import Query
    from server.monitor.state import Monitor

router = APIRouter(include_in_schema=False)

TICK = 5.0
"""Seconds for which the parts of a run under way are as good as new; ages are counted in the browser."""
SLOW_TICK = 60.0
"""The same of a run nobody works on."""


@router.get("/")
@router.head("/")
def overview(request: Request) -> Response:
    """Show every run."""
    monitor: Monitor = request.app.state.monitor
    made, now = _overview_parts(monitor)
    return page(request, "overview.html.j2", parts=_markup(made), centre=monitor.centre, now=now)


@router.get("/update")
def overview_update(request: Request) -> Response:
    """Send the table of runs again."""
    monitor: Monitor = request.app.state.monitor
    answers = _answers(request)
    moment = int(monitor.now() // TICK)
    revisions = tuple((run.key, monitor.watch.revision(run.key)) for run in monitor.runs.list())

    def make() -> Answer:
        made, _ = _overview_parts(monitor)
        return Answer.of(as_json({"revision": moment, "parts": made, "figures": {}}))

    return send(request, _answer(answers, ("overview", revisions, moment), make))


def _overview_parts(monitor: Monitor) -> tuple[dict[str, str], float]:
    from server.facts.runs import summary

    now = monitor.now()
    return parts.overview_parts([summary(run, now) for run in monitor.runs.list()], now), now


@router.get("/runs/{run}")
@router.head("/runs/{run}")
def run_page(request: Request, run: str) -> Response:
    """Show one run."""
    monitor: Monitor = request.app.state.monitor
    found = monitor.runs.find(run)
    here, moment = Address.of(request.query_params), _moment(monitor, found)
    told = json.loads(_run_parts(monitor, _answers(request), found, here, moment))
    made = told["parts"]
    shown = {"key": found.key, "now": monitor.now(), "title": told["title"], "name": told["name"]}
    return page(request, "run.html.j2", parts=_markup(made), sections=parts.sections(made), **shown)


@router.get("/runs/{run}/update")
async def run_update(request: Request, run: str) -> Response:
    """Send the parts and figures of a run's page again.

    A page that asks because a stream told it of a revision says so (``told``): what another reader was
    sent for that revision or a later one is an answer too, given without a look at the run.
    """
    answers, told = _answers(request), request.query_params.get("told", "")
    moment = answers.of_turn(run, int(told) if told.isascii() and told.isdigit() and len(told) < 19 else None)
    if moment is not None:
        ready = answers.ready(_update_key(moment, _looked_at(request)))
        if isinstance(ready, Answer):
            return send(request, ready)
    return await run_in_threadpool(_run_update, request, run, moment)


def _run_update(request: Request, run: str, moment: Moment | None) -> Response:
    monitor: Monitor = request.app.state.monitor
    found, answers, here = monitor.runs.find(run), _answers(request), _looked_at(request)
    if moment is None:
        moment = answers.lately(found.key, stamp_of(found), lambda: _moment(monitor, found))
    of_moment = moment

    def make() -> Answer:
        head = _run_parts(monitor, answers, found, here, of_moment)
        figures = _figures(answers, found, _query(Address(**json.loads(head)["looked_at"])))
        return Answer.of(head[:-1] + b',"figures":{' + figures + b"}}")

    return send(request, _answer(answers, _update_key(moment, here), make))


def _update_key(moment: Moment, here: Address) -> tuple[object, ...]:
    return ("update", *moment, _choices(here))


def _moment(monitor: Monitor, run: Run) -> Moment:
    """Name what a run's parts depend on beside the query: its revision, and roughly the time.

    What is read later than the revision may be newer than it says, never older.
    """
    revision, now = run.view().revision(), monitor.now()
    active = standing(run, now).state in ACTIVE
    return run.key, revision, int(now // (TICK if active else SLOW_TICK))


def _run_parts(monitor: Monitor, answers: Answers, run: Run, here: Address, moment: Moment) -> bytes:
    """Return the parts of a run's page as JSON, with what they are of."""
    settings = monitor.settings

    def of_every_reader() -> tuple[parts.Facts, dict[str, str]]:
        facts = parts.common_facts(run, monitor.now(), settings.late, settings.silent)
        return facts, parts.run_parts(facts, parts.COMMON)

    def make() -> bytes:
        results, measured = run.view().results(), run.view().measured()
        common, made = answers.common(run.key, moment, of_every_reader)
        facts = parts.lively_facts(run, here, common)
        chosen = facts["here"].without_look()
        offered = tuple(facts["findings"]), tuple(facts["row_of"])
        settled = _written(
            answers,
            ("settled", run.key, results, _choices(chosen)),
            lambda: as_json(parts.run_parts(facts | parts.settled_facts(run, facts), parts.SETTLED)),
        )
        of_tests = _written(
            answers,
            ("measured", run.key, measured, offered, _choices(chosen)),
            lambda: as_json(parts.run_parts(facts | parts.measured_facts(run, facts), parts.MEASURED)),
        )
        made = made | parts.run_parts(facts, parts.LIVELY) | json.loads(settled) | json.loads(of_tests)
        names = parts.titles(facts["summary"])
        return as_json({"revision": moment[1], **names, "looked_at": asdict(chosen), "parts": made})

    return _written(answers, ("parts", *moment, _choices(here)), make)


def _choices(here: Address) -> frozenset[tuple[str, str]]:
    return frozenset(here.pairs().items())


def _looked_at(request: Request) -> Address:
    return Address.of(request.query_params).without_look()


def _query(here: Address) -> Query:
    from server.monitor.figures import Query

    return Query(metric=here.metric, finding=here.finding, site=here.site, round=here.round)


def _figures(answers: Answers, run: Run, query: Query) -> bytes:
    """Return the members of a JSON object; a figure is drawn again only if what it shows has changed."""
    from server.monitor.figures import CHOICES, FIGURES, LIVELY, MEASURED

    view = run.view()
    results, measured, revision = view.results(), view.measured(), view.revision()
    drawn = []
    for name in FIGURES:
        mark = revision if name in LIVELY else measured if name in MEASURED else results
        chosen = query.only(*CHOICES[name])
        figure = _written(
            answers, ("figure", run.key, name, mark, chosen), partial(_drawn, run, name, chosen)
        )
        drawn.append(as_json(name) + b":" + figure)
    return b",".join(drawn)


def _drawn(run: Run, name: str, query: Query) -> bytes:
    from server.monitor.figures import FIGURES

    return as_json(FIGURES[name](run, query))


@router.get("/compare")
@router.head("/compare")
def compare_page(request: Request, first: str = "", second: str = "") -> Response:
    """Show two runs side by side."""
    facts = compare_facts(request.app.state.monitor, first, second, Address.of(request.query_params))
    made = _markup({"compare": parts.written("part_compare", facts)})
    return page(request, "compare.html.j2", parts=made, **{k: facts[k] for k in ("comparison", "now")})


@router.get("/compare/update")
def compare_update(request: Request, first: str = "", second: str = "") -> Response:
    """Send the comparison again, with its figure."""
    from server.monitor.figures import compare_figure

    monitor: Monitor = request.app.state.monitor
    here = _looked_at(request)

    def make() -> Answer:
        facts = compare_facts(monitor, first, second, here)
        figure = compare_figure(facts["first_run"], facts["second_run"], _query(facts["here"]))
        made = {"compare": parts.written("part_compare", facts)}
        return Answer.of(as_json({"revision": 0, "parts": made, "figures": {"compare": figure}}))

    return send(request, _answer(_answers(request), compare_key(monitor, first, second, here), make))


def _answers(request: Request) -> Answers:
    """Return the application's answers, made with the first question."""
    state = request.app.state
    if not hasattr(state, "answers"):
        state.answers = Answers()
    answers: Answers = state.answers
    return answers


def _written(answers: Answers, key: object, make: Callable[[], bytes]) -> bytes:
    found = answers.get(key, make)
    assert isinstance(found, bytes)  # noqa: S101  (for the type checker)
    return found


def _answer(answers: Answers, key: object, make: Callable[[], Answer]) -> Answer:
    found = answers.get(key, make)
    assert isinstance(found, Answer)  # noqa: S101  (for the type checker)
    return found


def _markup(made: dict[str, str]) -> dict[str, Markup]:
    """Mark parts as written: their templates have escaped what is in them."""
    return {name: Markup(text) for name, text in made.items()}
