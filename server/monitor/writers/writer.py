"""Writer: what a program that draws curves must be able to take of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from server.facts.records import PlanFacts, RunSummary


class Writer(Protocol):
    """Takes scalars by name and round; used by one thread, from `begin` to `close`."""

    def begin(self, plan: PlanFacts, summary: RunSummary) -> None:
        """Open what is there of this run, or begin anew.

        Raises:
            ConfigError: if what is there belongs to another run.
        """

    def held(self) -> Mapping[str, Mapping[int, float]]:
        """Return name -> round -> value of everything that was written."""

    def kept(self, value: float) -> float:
        """Return a value as it is read back: some keep fewer digits."""

    def scalar(self, name: str, round: int, value: float, time: float) -> None:
        """Write one value, which is not held yet; ``time`` is when the round was over."""

    def begin_anew(self) -> None:
        """Hold nothing again, in another place: the run was rolled back, and values cannot be taken back."""

    def flush(self) -> None:
        """Hand over what was written, so that it survives the end of this process."""

    def end(self, summary: RunSummary) -> None:
        """Note how the run ended; it may go on later, and be written to again."""

    def close(self) -> None:
        """Let go of files and connections."""
