"""Every model at every site, on the site's own test studies."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.protocol import SAME_RANKING
from server.facts.records import Matrix
from server.facts.view import LedgerView

_LOCAL = "local:"
_ORDER = ("local", "federated", "personalised", "pooled")
_AUROC = re.compile(r"([a-z0-9_]+)\.auroc")
_MACRO = ""
_NEW = "SELECT rowid, arm, site, metrics FROM evaluations WHERE rowid > ? AND split = 'test' ORDER BY rowid"


class Areas:
    """AUROC and interval of every model, site and finding; evaluations are read once.

    Fifty models at fifty sites are megabytes of text, of which this keeps the numbers of a matrix.
    """

    def __init__(self) -> None:
        self.columns: dict[str, int] = {_MACRO: 0}
        """Finding -> its row in ``areas``; '' is the macro AUROC."""
        self.areas: dict[str, dict[str, NDArray[np.float64]]] = {}
        """Arm -> site -> ``[findings, 3]``: AUROC and its interval, NaN where undefined."""
        self._count = self._last = 0
        self._generation: Any = None

    def update(self, view: LedgerView) -> None:
        """Read the evaluations that are new."""
        generation = view.get("generation")
        counted = view.rows("SELECT count(*) FROM evaluations WHERE split = 'test'")
        if generation != self._generation or (counted and counted[0][0] < self._count):
            self.__init__()  # type: ignore[misc]
            self._generation = generation
        # The last one is read again: set again, it keeps its number.
        for number, arm, site, metrics in view.rows(_NEW, (self._last - 1,)):
            self._last = number
            self.areas.setdefault(arm, {})[site] = self._read(json.loads(metrics))
        self._count = sum(map(len, self.areas.values()))

    def area(self, arm: str, site: str, finding: str) -> tuple[float, float, float]:
        """Return AUROC, low and high; NaN where there is none."""
        row, kept = self.columns.get(finding), self.areas.get(arm, {}).get(site)
        if row is None or kept is None or row >= len(kept):
            return (math.nan, math.nan, math.nan)
        area, low, high = kept[row].tolist()
        return area, low, high

    def _read(self, flat: dict[str, Any]) -> NDArray[np.float64]:
        told: dict[str, tuple[Any, Any]] = {}
        if "macro-auroc" in flat:
            told[_MACRO] = flat["macro-auroc"], flat.get("macro-interval")
        for key, value in flat.items():
            if match := _AUROC.fullmatch(key):
                told[match[1]] = value, flat.get(f"{match[1]}.interval")
        for finding in told:
            self.columns.setdefault(finding, len(self.columns))
        kept = np.full((len(self.columns), 3), np.nan)
        for finding, (area, interval) in told.items():
            pair = interval if isinstance(interval, list) and len(interval) == 2 else (np.nan, np.nan)
            kept[self.columns[finding]] = (area, *pair)
        return kept


def matrix(view: LedgerView, finding: str = "") -> Matrix | None:
    """Return every model's AUROC at every site; None before anything was measured.

    Where sites measured each other's local models, each of these is a row; else there is one row
    of every site's own.
    """
    with view.still():
        kept = view.keep(Areas)
        if not kept.areas:
            return None
        arms = [*(arm for arm in _ORDER if arm in kept.areas)]
        others = kept.areas.keys() - {*_ORDER} - SAME_RANKING  # theirs are the federated model's areas
        arms += sorted(arm for arm in others if not arm.startswith(_LOCAL))
        sites = sorted({site for of in kept.areas.values() for site in of})
        makers = sorted(arm.removeprefix(_LOCAL) for arm in kept.areas if arm.startswith(_LOCAL))
        models: list[tuple[str, str, str]] = []
        """Name, arm, and the site that trained it alone."""
        if makers:
            owners = sorted({*makers, *kept.areas.get("local", {})})
            models = [(f"local of {site}", f"{_LOCAL}{site}", site) for site in owners]
            arms = [arm for arm in arms if arm != "local"]
        models += [("local, each its own" if arm == "local" else arm, arm, "") for arm in arms]
        cells = [
            [kept.area("local" if own == site else arm, site, finding) for site in sites]
            for _, arm, own in models
        ]
    return Matrix(
        finding=finding,
        models=tuple(name for name, _, _ in models),
        sites=tuple(sites),
        values=tuple(tuple(_known(area) for area, _, _ in row) for row in cells),
        intervals=tuple(
            tuple(None if low != low or high != high else (low, high) for _, low, high in row)
            for row in cells
        ),
        own=tuple(own for _, _, own in models),
    )


def _known(value: float) -> float | None:
    return None if value != value else value
