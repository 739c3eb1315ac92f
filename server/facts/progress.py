"""How far a run is, folded from its events one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from server.facts.reasons import reason_of
from server.facts.records import Rejection
from server.ledger import Event

if TYPE_CHECKING:
    from server.facts.view import LedgerView

Stage = Literal["waiting", "enrolling", "local", "training", "testing", "finished", "failed", "stopped"]

_ENDS: dict[str, Stage] = {"finished": "finished", "failed": "failed", "stopped": "stopped"}
_ANSWERS = {"returned", "rejected", "local", "answered"}
_BEYOND = {"chosen", "calibrated", "tested", "released"}
_AT_ONCE = 5_000


@dataclass
class Question:
    """What was asked last: of whom, and who has answered."""

    stage: str
    round: int | None
    arm: str
    time: float
    deadline: float | None
    """Seconds; None: what the plan says."""
    cohort: tuple[str, ...]
    answers: dict[str, str] = field(default_factory=dict)
    """Site -> ``returned``, ``rejected`` ..."""
    over: bool = False

    @property
    def waiting(self) -> tuple[str, ...]:
        """Sites whose answer is still to come."""
        return () if self.over else tuple(site for site in self.cohort if site not in self.answers)


class Progress:
    """Follows the events of a run; all that is kept is small."""

    def __init__(self) -> None:
        self.last_id = 0
        self.first: float | None = None
        self.newest: Event | None = None
        self.stage: Stage = "waiting"
        self.since: float | None = None
        """When the stage began."""
        self.began: float | None = None
        """When whoever works on the run now began to."""
        self.question: Question | None = None
        self.enrolled: dict[str, float] = {}
        """Site -> when it enrolled, of this attempt."""
        self.refused: dict[str, str] = {}
        """Site -> code, of this attempt."""
        self.expected: tuple[str, ...] = ()
        """Sites the enrolment said it waits for."""
        self.heard: dict[str, float] = {}
        """Site -> when the newest event that it caused happened."""
        self.rejections: dict[str, list[Rejection]] = {}
        self.warnings = 0
        """Updates rejected and sites refused; missed deadlines are the rounds'."""
        self.longest_quiet = 0.0
        """Seconds: the longest time between two events of this attempt."""

    @property
    def newest_kind(self) -> str:
        """Kind of the newest event; empty before the first."""
        return self.newest.kind if self.newest is not None else ""

    def update(self, view: LedgerView) -> None:
        """Take in the events that are new."""
        while events := view.events(self.last_id, _AT_ONCE):
            self.take(events)

    def take(self, events: Iterable[Event]) -> None:
        """Take in events, oldest first."""
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        if self.first is None:
            self.first = event.time
        if self.newest is not None and self.began is not None:
            self.longest_quiet = max(self.longest_quiet, event.time - self.newest.time)
        self.last_id, self.newest = event.id, event
        kind, site = event.kind, event.site
        if site is not None:
            self._of_site(event, site)
        if kind == "plan":
            self._go(event, "enrolling")
            self.began, self.longest_quiet = event.time, 0.0
            self.enrolled, self.refused, self.expected, self.question = {}, {}, (), None
        elif kind == "waiting":
            self.expected = tuple(event.facts.get("sites") or ())
        elif kind == "stage":
            self.question = None
            if self.stage != "testing":  # there it is the calibration
                self._go(event, "local")
        elif kind in ("asked", "asking"):
            self._asked(event)
        elif kind == "round":
            self._close()
            self.since = event.time
        elif kind in _BEYOND:
            self._close()
            if self.stage != "testing":
                self._go(event, "testing")
        elif kind in _ENDS:
            self._close()
            self._go(event, _ENDS[kind])
        elif kind in ("submitted", "rolled-back"):
            self._close()
            self._go(event, "waiting")
            self.began = None

    def _of_site(self, event: Event, site: str) -> None:
        kind, code = event.kind, str(event.facts.get("code", ""))
        if kind in _ANSWERS or kind in ("enrolled", "evaluated"):
            self.heard[site] = event.time
        if kind == "enrolled":
            self.enrolled[site] = event.time
            self.refused.pop(site, None)
        elif kind in ("rejected", "refused"):
            self.warnings += 1
            told = str(event.facts.get("reason") or (reason_of(code) if code else event.text))
            self.rejections.setdefault(site, []).append(Rejection(event.round, code, told))
            if kind == "refused":
                self.refused[site] = code
        asked = self.question
        if asked is not None and not asked.over and (kind in _ANSWERS or kind == "evaluated"):
            asked.answers[site] = "rejected" if code else "returned"

    def _asked(self, event: Event) -> None:
        facts = event.facts
        stage = str(facts.get("stage") or "train")
        deadline = facts.get("deadline")
        self.question = Question(
            stage=stage,
            round=event.round,
            arm=str(facts.get("arm") or ""),
            time=event.time,
            deadline=float(deadline) if isinstance(deadline, int | float) else None,
            cohort=tuple(facts.get("cohort") or ()),
        )
        to: Stage = {"pretrain": "training", "train": "training", "local": "local"}.get(stage, "testing")  # type: ignore[assignment]
        if self.stage != to or stage == "train":
            self._go(event, to)

    def _go(self, event: Event, stage: Stage) -> None:
        self.stage, self.since = stage, event.time

    def _close(self) -> None:
        if self.question is not None:
            self.question.over = True
