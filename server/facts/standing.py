"""Where a run stands, and what it waits for: one account for the page, the API and the commands."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from common.config import RunConfig
from server.facts.history import History
from server.facts.progress import Progress
from server.facts.records import Standing, State, Waiting

if TYPE_CHECKING:
    from server.facts.runs import Run

_QUIET = 300.0
"""Seconds without an event after which a simulation may be dead; more where it was slow before."""
_MANY = 4


def standing(run: Run, now: float) -> Standing:
    """Say where a run stands.

    Of a centre's run it is known whether somebody works on it. Of a simulation only its events
    tell: one that was quiet for long counts as idle, and the sentence says that it is a guess.
    """
    view = run.view()
    working = run.at_work()
    with view.still():
        progress, history, config = view.keep(Progress), view.keep(History), view.config()
        return standing_of(progress, history, config, working, run.admitted(), now)


def standing_of(
    progress: Progress,
    history: History,
    config: RunConfig | None,
    working: bool | None,
    admitted: Collection[str],
    now: float,
) -> Standing:
    """Say where a run stands, from what its ledger and its folder's lock say."""
    committed = len(history.rounds)
    rounds = config.last_round if config is not None else 0
    newest = progress.newest.time if progress.newest is not None else None
    state: State = progress.stage
    quiet = now - newest if newest is not None else 0.0
    ended = state in ("finished", "failed", "stopped")
    if not ended and newest is not None:
        silent = working is None and quiet > max(_QUIET, 3 * progress.longest_quiet)
        left = working is False and progress.began is not None
        if silent or left or (progress.stage == "waiting" and progress.newest_kind == "rolled-back"):
            state = "idle"
    waiting, deadline = ((), None) if ended or state == "idle" else _waited_for(progress, config, admitted)
    asked = progress.question
    number = committed
    if asked is not None and asked.round is not None and not asked.over and state == "training":
        number = asked.round
    return Standing(
        state=state,
        sentence=_sentence(state, progress, committed, rounds, waiting, working, quiet),
        round=number,
        rounds=rounds,
        committed=committed,
        since=progress.since,
        waiting=waiting,
        deadline=deadline,
    )


def _waited_for(
    progress: Progress, config: RunConfig | None, admitted: Collection[str]
) -> tuple[tuple[Waiting, ...], float | None]:
    limit = config.rounds.deadline if config is not None else None
    if progress.stage == "enrolling" and progress.since is not None:
        expected = {*progress.expected, *admitted} - progress.enrolled.keys() - progress.refused.keys()
        waiting = tuple(Waiting(site, progress.since) for site in sorted(expected))
        return waiting, progress.since + limit if limit is not None else None
    asked = progress.question
    if asked is None or asked.over:
        return (), None
    waiting = tuple(Waiting(site, asked.time) for site in asked.waiting)
    limit = asked.deadline if asked.deadline is not None else limit
    return waiting, asked.time + limit if waiting and limit is not None else None


def _sentence(
    state: State,
    progress: Progress,
    committed: int,
    rounds: int,
    waiting: tuple[Waiting, ...],
    working: bool | None,
    quiet: float,
) -> str:
    far = f"{committed} of {rounds} rounds" if rounds else f"{committed} rounds"
    asked = progress.question
    whom = f", waiting for {_names([w.site for w in waiting])}" if waiting else ""
    if state == "idle":
        if working is None:
            return f"quiet for {_minutes(quiet)}, perhaps broken off; {far}"
        return f"not running, {far}"
    if state == "waiting":
        return f"handed in, not begun yet, {far}" if progress.newest else "starting"
    if state == "enrolling":
        return f"sites are enrolling{whom}; {len(progress.enrolled)} have"
    if state == "local":
        return f"sites train alone, to compare with{whom}"
    if state == "training":
        if asked is None or asked.over:
            return f"{far}, the next one begins"
        return f"round {asked.round} of {rounds}{whom or ', every site has answered'}"
    if state == "testing":
        what = "models are measured"
        if asked is not None and not asked.over:
            what = (
                f"sites measure {asked.arm}" if asked.stage == "evaluate" else f"sites {asked.stage} together"
            )
        return f"{far}; {what}{whom}"
    return f"{state}, {far}"


def _names(names: list[str]) -> str:
    shown = names if len(names) <= _MANY + 1 else names[:_MANY]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    if more or len(shown) == 1:
        return ", ".join(shown) + more
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def _minutes(seconds: float) -> str:
    """Write a time for people.

    >>> _minutes(360), _minutes(3 * 3600), _minutes(200_000)
    ('6 minutes', '3 hours', '2 days')
    """
    for length, unit in ((86400, "days"), (3600, "hours")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"
