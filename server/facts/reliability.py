"""Whether a model's probabilities mean what they say: observed shares beside predicted probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import fsum, sqrt
from typing import Any

from common.metrics.calibration import too_fine
from server.facts.records import Bin, Reliability
from server.facts.view import LedgerView

_Z = 1.959963984540054
"""Standard normal quantile at 0.975."""
_BINS = 15
_ORDER = ("local", "federated", "calibrated", "personalised", "pooled")
_OF_TEST = "FROM evaluations WHERE split = 'test' AND arm NOT LIKE 'local:%'"
_ENDS = (".bins-mean", ".bins-studies", ".bins-positives", ".ece", ".positives", ".negatives")


class Told:
    """What evaluations tell of probabilities, read once however many findings are looked at."""

    def __init__(self) -> None:
        self.arms: dict[str, dict[str, dict[str, Any]]] = {}
        """Arm -> site -> metrics, those that are needed here."""
        self._mark: Any = None

    def update(self, view: LedgerView) -> None:
        """Read the evaluations again if there are others than at the last look."""
        # One that is set again becomes the last row; only the last itself keeps its number.
        mark = view.rows(f"SELECT count(*), max(rowid), metrics {_OF_TEST}")
        if mark == self._mark:
            return
        self._mark, self.arms = mark, {}
        for arm, site, metrics in view.rows(f"SELECT arm, site, metrics {_OF_TEST} ORDER BY rowid"):
            flat = json.loads(metrics)
            kept = {key: value for key, value in flat.items() if key.endswith(_ENDS)}
            self.arms.setdefault(arm, {})[site] = kept


def reliability(view: LedgerView, finding: str, site: str = "") -> Reliability | None:
    """Return the bins of every model for a finding, at a site or over all of them.

    Without a finding it is the first that has bins. None where nobody sent any: an older run, or too few
    studies.
    """
    with view.still():
        return gather(view.keep(Told).arms, finding, site)


def gather(
    told: Mapping[str, Mapping[str, Mapping[str, Any]]], finding: str, site: str = ""
) -> Reliability | None:
    """Put together what sites told of each model: arm -> site -> metrics as they come over the wire."""
    order = [*(arm for arm in _ORDER if arm in told), *sorted(arm for arm in told if arm not in _ORDER)]
    if not finding:
        keys = [key for arm in order for metrics in told[arm].values() for key in metrics]
        finding = next((key.removesuffix(".bins-mean") for key in keys if key.endswith(".bins-mean")), "")
    arms: dict[str, tuple[Bin, ...]] = {}
    ece: dict[str, float | None] = {}
    for arm in order:
        chosen = [metrics for name, metrics in told[arm].items() if site in ("", name)]
        bins = [part for metrics in chosen for part in _parts(metrics, finding)]
        if bins:
            arms[arm] = _bins(bins, merge=not site or too_fine([studies for _, studies, _ in bins]))
            ece[arm] = _ece(chosen, finding)
    return Reliability(finding, site, arms, ece) if arms else None


def wilson(positives: int, studies: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927).

    >>> low, high = wilson(1, 10)
    >>> round(low, 4), round(high, 4)
    (0.0179, 0.4042)
    """
    share, z2 = positives / studies, _Z * _Z
    middle = (share + z2 / (2 * studies)) / (1 + z2 / studies)
    reach = _Z / (1 + z2 / studies) * sqrt(share * (1 - share) / studies + z2 / (4 * studies * studies))
    return (
        0.0 if positives == 0 else max(0.0, middle - reach),
        1.0 if positives == studies else min(1.0, middle + reach),
    )


def _parts(metrics: Mapping[str, Any], finding: str) -> Iterable[tuple[float, int, int]]:
    """Mean probability, studies and positives of each bin that a site sent, if it sent sound ones."""
    lists = [metrics.get(f"{finding}.bins-{name}") for name in ("mean", "studies", "positives")]
    if not all(isinstance(values, list) for values in lists):
        return ()
    rows = zip(*lists, strict=False)
    return [
        (float(mean), int(studies), int(positives))
        for mean, studies, positives in rows
        if studies > 0 and 0 <= positives <= studies and 0 <= mean <= 1
    ]


def _bins(parts: list[tuple[float, int, int]], merge: bool) -> tuple[Bin, ...]:
    """Sort bins by their mean; ``merge`` puts them together in fifteenths of the probability.

    So several sites' become one diagram, and a site's can be read where it cut them finer.
    """
    groups: dict[float, list[tuple[float, int, int]]] = {}
    for part in parts:
        key = float(min(int(part[0] * _BINS), _BINS - 1)) if merge else part[0]
        groups.setdefault(key, []).append(part)
    return tuple(_bin(groups[key]) for key in sorted(groups))


def _bin(parts: list[tuple[float, int, int]]) -> Bin:
    studies, positives = sum(n for _, n, _ in parts), sum(p for _, _, p in parts)
    mean = fsum(m * n for m, n, _ in parts) / studies
    return Bin(mean, studies, positives, positives / studies, wilson(positives, studies))


def _ece(chosen: Sequence[Mapping[str, Any]], finding: str) -> float | None:
    """Return the finding's ECE, over several sites their mean weighted by studies."""
    known = [
        (float(m[f"{finding}.ece"]), m.get(f"{finding}.positives", 0) + m.get(f"{finding}.negatives", 0))
        for m in chosen
        if f"{finding}.ece" in m
    ]
    total = sum(studies for _, studies in known)
    return fsum(value * studies for value, studies in known) / total if total else None
