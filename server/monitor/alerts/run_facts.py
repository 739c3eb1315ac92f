"""RunFacts: what the rules look at, gathered once from a run's ledger and registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from server.facts.records import Curve, SiteRow, Standing

if TYPE_CHECKING:
    from server.facts.runs import Run
    from server.facts.view import LedgerView

Points = list[tuple[int, float]]
"""(round, value), by round."""

LIVE = frozenset({"waiting", "enrolling", "local", "training", "testing"})
"""States in which somebody works on a run."""
_MOST_ABANDONED = 20


@dataclass(frozen=True)
class RunFacts:
    """One run as the rules see it."""

    key: str
    standing: Standing
    started: float | None = None
    """When the run began."""
    sites: tuple[SiteRow, ...] = ()
    quorum: int = 0
    """Admissible updates a round needs; 0: not known."""
    traffic: int = 0
    """Bytes both ways so far."""
    abandoned: tuple[int, ...] = ()
    """The newest rounds, if they were abandoned, newest first."""
    loss: Curve | None = None
    auroc: Curve | None = None
    norms: Mapping[str, Points] = field(default_factory=dict)
    """Site -> L2 norm of its update per round."""
    lora_error: Points = field(default_factory=list)
    epsilon: Mapping[str, Points] = field(default_factory=dict)
    """Site -> privacy spent after each round; empty where a run keeps no account of it."""

    @property
    def live(self) -> bool:
        """Whether somebody works on it."""
        return self.standing.state in LIVE


@dataclass(frozen=True)
class _Measured:
    """What changes only when the ledger does."""

    revision: int
    started: float | None
    sites: tuple[SiteRow, ...]
    quorum: int
    traffic: int
    abandoned: tuple[int, ...]
    loss: Curve | None
    auroc: Curve | None
    norms: Mapping[str, Points]
    lora_error: Points
    epsilon: Mapping[str, Points]


class Gatherer:
    """Gathers facts of runs; what is costly is computed anew only when a ledger has changed."""

    def __init__(self) -> None:
        self._kept: dict[str, _Measured] = {}

    def gather(self, run: Run, standing: Standing, now: float) -> RunFacts:
        """Return what the rules look at.

        Raises:
            RunError: if the ledger cannot be read.
        """
        view = run.view()
        revision = view.revision()
        kept = self._kept.get(run.key)
        if kept is None or kept.revision != revision:
            kept = self._kept[run.key] = _measure(run, view, revision, now)
        heard = {} if run.steady else run.heard()
        return RunFacts(
            run.key,
            standing,
            kept.started,
            tuple(_with_contact(row, heard, run.steady) for row in kept.sites),
            kept.quorum,
            kept.traffic,
            kept.abandoned,
            kept.loss,
            kept.auroc,
            kept.norms,
            kept.lora_error,
            kept.epsilon,
        )

    def forget(self, keys: set[str]) -> None:
        """Drop what is kept of every run but these."""
        self._kept = {key: kept for key, kept in self._kept.items() if key in keys}


def _with_contact(row: SiteRow, heard: Mapping[str, float], steady: bool) -> SiteRow:
    """A site is heard of without a line in the ledger, so its row is older than its last call."""
    if steady or row.name not in heard:
        return row
    return replace(row, heard=heard[row.name])


def _measure(run: Run, view: LedgerView, revision: int, now: float) -> _Measured:
    from server.facts.curves import curve
    from server.facts.runs import summary
    from server.facts.sites import site_rows

    told = summary(run, now)
    config = view.config()
    return _Measured(
        revision,
        told.started,
        tuple(site_rows(run, now)),
        config.rounds.quorum if config else 0,
        told.up + told.down,
        _abandoned(view),
        curve(view, "loss"),
        curve(view, "auroc"),
        view.series("update-norm"),
        view.series("lora-error").get("", []),
        view.series("epsilon"),
    )


def _abandoned(view: LedgerView) -> tuple[int, ...]:
    found: list[int] = []
    for number in range(view.last_round(), 0, -1):
        record = view.record(number)
        if record is None or record.get("status") != "abandoned" or len(found) == _MOST_ABANDONED:
            break
        found.append(number)
    return tuple(found)
