"""A metric's mean over the sites, finding by finding."""

from __future__ import annotations

from typing import Any

from server.facts.view import LATE, LedgerView

_MEANS = (
    "SELECT round, avg(value) FROM measures"
    " WHERE name = ? AND finding = ? AND round > ? AND site != '' GROUP BY round ORDER BY round"
)

Points = list[tuple[int, float]]


class Means:
    """Mean over the sites of every round and finding, of the metrics asked for.

    Fifty sites, fourteen findings and five hundred rounds are 350,000 numbers for seven thousand
    means: only the rounds that are new since the last look are read.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], dict[int, float]] = {}
        self._generation: Any = None

    def update(self, view: LedgerView) -> None:
        """Forget what was measured before a run went back behind rounds."""
        generation = view.get("generation")
        if generation != self._generation:
            self._kept.clear()
            self._generation = generation

    def of(self, view: LedgerView, name: str, finding: str) -> Points:
        """Return (round, mean); each site that has a value in a round counts once."""
        kept = self._kept.setdefault((name, finding), {})
        last = max(kept, default=-1) - LATE
        kept.update(view.rows(_MEANS, (name, finding, last)))
        return [*kept.items()]


def finding_curves(view: LedgerView, name: str, findings: list[str], site: str = "") -> dict[str, Points]:
    """Return finding -> (round, value) at a site, or as the mean over the sites."""
    with view.still():
        if site:
            return {finding: view.series(name, finding, site).get(site, []) for finding in findings}
        means = view.keep(Means)
        return {finding: means.of(view, name, finding) for finding in findings}
