"""The site table: who is there, what each has and did, and what it got out of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.facts.history import History
from server.facts.progress import Progress
from server.facts.records import Contact, SiteRow
from server.facts.runs import Run
from server.facts.standing import standing_of
from server.facts.tested import Tested
from server.facts.view import LedgerView

_GOING_ON = ("waiting", "enrolling", "local", "training", "testing")
_DOING = {
    "pretrain": "pretraining",
    "train": "training",
    "local": "training alone",
    "evaluate": "measuring",
    "calibrate": "calibrating",
    "personalise": "making it its own",
}


def site_rows(run: Run, now: float, late: float = 20.0, silent: float = 60.0) -> list[SiteRow]:
    """Return every site that enrolled or was refused, in name order; while it goes on, all admitted ones.

    A site is ``connected`` if it was heard of within ``late`` seconds, ``late`` until ``silent``,
    then ``silent``; one without a heartbeat (in a simulation, or never connected) is ``unknown``.
    """
    view, heard, admitted = run.view(), run.heard(), run.admitted()
    working = run.at_work()
    with view.still():
        progress, history, facts = view.keep(Progress), view.keep(History), view.sites()
        standing = standing_of(progress, history, view.config(), working, admitted, now)
        known = _known(view, admitted if standing.state in _GOING_ON else ())
        figures = {
            name: view.newest(name) for name in ("update-norm", "cosine", "weight", "seconds", "auroc")
        }
        up, down = view.keep(Traffic).sums()
        gains = view.keep(Tested).gains
        rows = []
        for name in known:
            told = facts.get(name, {})
            ago = heard.get(name)
            rows.append(
                SiteRow(
                    name=name,
                    contact="unknown" if run.steady else contact(ago, now, late, silent),
                    heard=ago,
                    doing=_doing(name, progress, history, standing.state == "idle"),
                    train_studies=told.get("train-studies"),
                    validation_studies=told.get("validation-studies"),
                    test_studies=told.get("test-studies"),
                    patients=told.get("patients"),
                    findings=tuple(told.get("findings", ())),
                    participation=_participation(name, progress, history),
                    **{key.replace("-", "_"): of.get(name) for key, of in figures.items()},
                    up=up.get(name, 0),
                    down=down.get(name, 0),
                    gain=gains["federated"].get(name),
                    personalised_gain=gains["personalised"].get(name),
                    set_aside=sum(v for key, v in told.items() if key.startswith("quarantined.")),
                    rejections=tuple(progress.rejections.get(name, ())),
                )
            )
        return rows


def contact(heard: float | None, now: float, late: float, silent: float) -> Contact:
    """Say how lately a site was heard of; of one that never was, nothing is known.

    >>> [contact(100.0, now, 20.0, 60.0) for now in (100.0, 125.0, 161.0)]
    ['connected', 'late', 'silent']
    """
    if heard is None:
        return "unknown"
    if now - heard > silent:
        return "silent"
    return "late" if now - heard > late else "connected"


class Traffic:
    """Bytes of each site, summed up round by round."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {"up": {}, "down": {}}
        self._last = 0
        self._generation: Any = None

    def update(self, view: LedgerView) -> None:
        """Add the rounds that are new."""
        generation, last = view.get("generation"), view.last_round()
        if generation != self._generation or last < self._last:
            self.__init__()  # type: ignore[misc]
            self._generation = generation
        if last == self._last:
            return
        query = (
            "SELECT site, sum(value) FROM measures"
            " WHERE name = ? AND finding = '' AND round > ? AND round <= ? AND site != '' GROUP BY site"
        )
        for name, sums in self._sums.items():
            for site, count in view.rows(query, (name, self._last, last)):
                sums[site] = sums.get(site, 0) + count
        self._last = last

    def sums(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return site -> bytes up, and down."""
        up, down = ({site: int(count) for site, count in of.items()} for of in self._sums.values())
        return up, down


def participation(run: Run, now: float) -> dict[str, tuple[str, ...]]:
    """Return site -> what it did in each round, of every site that `site_rows` has."""
    view, admitted, working = run.view(), run.admitted(), run.at_work()
    with view.still():
        progress, history = view.keep(Progress), view.keep(History)
        standing = standing_of(progress, history, view.config(), working, admitted, now)
        known = _known(view, admitted if standing.state in _GOING_ON else ())
        return {name: _participation(name, progress, history) for name in known}


def _known(view: LedgerView, coming: Iterable[str]) -> list[str]:
    return sorted({*view.sites(), *view.keep(Progress).rejections, *view.keep(History).parts, *coming})


def _participation(name: str, progress: Progress, history: History) -> tuple[str, ...]:
    parts: list[str] = [*history.parts.get(name, ["not asked"] * len(history.rounds))]
    asked = progress.question
    if asked is not None and asked.round is not None and not asked.over and asked.round > len(parts):
        parts.append(asked.answers.get(name, "asked") if name in asked.cohort else "not asked")
    return tuple(parts)


def _doing(name: str, progress: Progress, history: History, idle: bool) -> str:
    asked = progress.question
    if name in progress.refused and name not in progress.enrolled:
        return "refused"
    if progress.stage in ("finished", "failed", "stopped") or idle or asked is None:
        return ""
    if name not in asked.cohort:
        return ""
    where = f" round {asked.round}" if asked.round is not None else f" {asked.arm}".rstrip()
    if name in asked.answers:
        return f"answered{where}"
    if not asked.over:
        return _DOING.get(asked.stage, "asked") + where
    if asked.round is not None and history.parts.get(name, [""])[-1] == "missing":
        return f"did not answer{where}"
    return ""
