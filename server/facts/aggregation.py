"""How a round's updates became one."""

from __future__ import annotations

from typing import Any

from server.facts.recent import Recent
from server.facts.records import Aggregation
from server.facts.view import LedgerView

_OF_ROUND = "SELECT site, value FROM measures WHERE name = ? AND finding = '' AND round = ? ORDER BY site"


def aggregation(view: LedgerView, round: int | None = None) -> Aggregation | None:
    """Return weights, norms and cosines of a round, of the newest with a mean if None.

    None where there is no such round, or nothing was averaged in it.
    """
    with view.still():
        return view.keep(Recent).of(("aggregation", round), lambda: _aggregation(view, round))


def _aggregation(view: LedgerView, round: int | None) -> Aggregation | None:
    with view.still():
        if round is None:
            rows = view.rows("SELECT max(round) FROM measures WHERE name = 'weight' AND finding = ''")
            round = rows[0][0] if rows else None
        if round is None:
            round = max((points[-1][0] for points in view.series("weight").values()), default=0)
        shares = _of_round(view, "weight", round)
        if not shares:
            return None
        pairs = view.detail("pairs", round) or {}
        drift = view.details("drift")
        order = {site: k for k, site in enumerate(pairs.get("sites", ()))}
        known = [order[site] for site in shares] if order.keys() >= shares.keys() else []
        matrix = pairs.get("cosines", ())
        blocks = list(dict.fromkeys(name for kept in drift.values() for name in kept["blocks"]))
        return Aggregation(
            round=round,
            weights=shares,
            norms=_of_round(view, "update-norm", round),
            cosines=_of_round(view, "cosine", round),
            pairs=tuple(tuple(matrix[i][j] for j in known) for i in known),
            lora_error=tuple(view.series("lora-error", site="").get("", ())),
            drift_blocks=tuple(blocks),
            drift_rounds=tuple(drift),
            drift=tuple(_row(kept, blocks) for kept in drift.values()),
        )


def _of_round(view: LedgerView, name: str, round: int) -> dict[str, float]:
    rows = dict(view.rows(_OF_ROUND, (name, round)))
    return rows or {
        site: value for site, points in sorted(view.series(name).items()) for n, value in points if n == round
    }


def _row(kept: dict[str, Any], blocks: list[str]) -> tuple[float | None, ...]:
    values: dict[str, float] = dict(zip(kept["blocks"], kept["values"], strict=True))
    return tuple(values.get(block) for block in blocks)
