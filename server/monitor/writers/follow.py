"""Feed a writer from a run's ledger: what is new, nothing twice, and after a rollback anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.errors import RunError
from server.facts.plan import plan_facts
from server.facts.runs import summary
from server.monitor.writers.series import TEST, Scalar, is_settled, scalars
from server.monitor.writers.writer import Writer

if TYPE_CHECKING:
    from server.facts.runs import Run

OVER = frozenset({"finished", "failed", "stopped"})
_AGAIN = 2
"""Newest rounds that are looked at again each time: sites measure the last adapter one by one."""


class Follower:
    """Keeps one writer in step with one run.

    What the writer holds is asked of the writer itself, so whoever was killed in the middle goes on
    where it was; and held against the ledger, so a rollback is seen even if nobody followed meanwhile.
    """

    def __init__(self, run: Run, writer: Writer, now: float) -> None:
        """Open the writer.

        Raises:
            RunError: if the run has no plan yet.
            ConfigError: if what the writer finds belongs to another run.
        """
        self._run, self._writer = run, writer
        view = run.view()
        plan = plan_facts(view)
        if plan is None:
            raise RunError(f"the run {run.key} has not begun", fix="export it once it has")
        writer.begin(plan, summary(run, now))
        self._held: dict[str, dict[int, float]] = {}
        self._generation: Any = _NEVER
        self._times: dict[int, float] = {}
        self._last_event = 0
        self._ended = ""

    def step(self, now: float) -> int:
        """Write what is new; returns how many values that were."""
        view = self._run.view()
        told = summary(self._run, now)
        complete = told.standing.state == "finished"
        with view.still():
            generation = view.get("generation")
            whole = generation != self._generation
            since = 0 if whole else max(0, view.last_round() - _AGAIN)
            last = view.last_round()
            found = list(scalars(view, since))
            self._read_times()
        if whole:
            self._held = {name: dict(points) for name, points in self._writer.held().items()}
        if self._differs(found, since):
            self._writer.begin_anew()
            self._generation = _NEVER
            return self.step(now)
        written = self._write([scalar for scalar in found if complete or is_settled(scalar, last)])
        self._generation = generation
        self._forget(last - _AGAIN)
        if told.standing.state in OVER and (written or self._ended != told.standing.state):
            self._writer.end(told)
            self._ended = told.standing.state
        self._writer.flush()
        return written

    def close(self) -> None:
        """Close the writer."""
        self._writer.close()

    def _write(self, found: list[Scalar]) -> int:
        written = 0
        for name, number, value in sorted(found, key=lambda scalar: scalar.round):
            held = self._held.setdefault(name, {})
            if number not in held:
                self._writer.scalar(name, number, value, self._time_of(number))
                held[number] = self._writer.kept(value)
                written += 1
        return written

    def _differs(self, found: list[Scalar], since: int) -> bool:
        """Tell whether the writer holds what the ledger does not say (any more)."""
        said = {(name, number): self._writer.kept(value) for name, number, value in found}
        return any(
            said.get((name, number)) != value
            for name, points in self._held.items()
            for number, value in points.items()
            if number >= since
        )

    def _forget(self, before: int) -> None:
        for name, points in self._held.items():
            if not name.startswith(TEST):
                self._held[name] = {number: v for number, v in points.items() if number >= before}

    def _read_times(self) -> None:
        for event in self._run.view().events(self._last_event):
            self._last_event = event.id
            if event.kind == "round" and event.round is not None:
                self._times[event.round] = event.time
            self._times.setdefault(0, event.time)

    def _time_of(self, number: int) -> float:
        """When a round was over; of one that no event tells of, when the one before it was."""
        while number > 0 and number not in self._times:
            number -= 1
        return self._times.get(number, 0.0)


_NEVER = object()
