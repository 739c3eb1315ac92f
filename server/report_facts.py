"""A report's parts as the records that figures are drawn of: the page of a run draws the same ones."""

from __future__ import annotations

from typing import Any

from common.protocol import SAME_RANKING
from server.facts.records import Aggregation, Matrix, Reliability
from server.facts.reliability import gather
from server.report_aggregation import AggregationPart, DriftPart
from server.report_schema import Report
from server.report_words import shown_findings

_ORDER = ("federated", "personalised", "pooled")
_NO_ROW = {"local", *SAME_RANKING}
"""Arms that are no row of the matrix: each site's own is one, and calibration changes no ranking."""


def matrix_of(report: Report) -> Matrix | None:
    """Return every model's macro AUROC at every site; None where no local model was measured elsewhere."""
    local = [row for row in report.matrix or () if row.trained_at is not None]
    if not local:
        return None
    arms = [name for name in _ORDER if name in report.arms]
    arms += sorted(report.arms.keys() - {*_ORDER} - _NO_ROW)
    measured = [{site: (cell.auroc, cell.interval) for site, cell in row.sites.items()} for row in local]
    measured += [
        {site: (result.macro_auroc, result.interval) for site, result in report.arms[name].sites.items()}
        for name in arms
    ]
    sites = tuple(sorted({site for row in measured for site in row}))
    cells = [[row.get(site, (None, None)) for site in sites] for row in measured]
    return Matrix(
        finding="",
        models=(*(f"local of {row.trained_at}" for row in local), *arms),
        sites=sites,
        values=tuple(tuple(value for value, _ in row) for row in cells),
        intervals=tuple(tuple(interval for _, interval in row) for row in cells),
        own=(*(row.trained_at or "" for row in local), *("" for _ in arms)),
    )


def reliabilities_of(report: Report) -> list[Reliability]:
    """Return each finding's reliability over all sites, where sites told of it."""
    told = {
        name: {site: _flat(result.findings) for site, result in arm.sites.items()}
        for name, arm in report.arms.items()
    }
    found = (gather(told, finding) for finding in shown_findings(report))
    return [one for one in found if one is not None and one.arms.keys() & {"federated", "calibrated"}]


def _flat(findings: Any) -> dict[str, Any]:
    """Write results of findings as a site sends them, those that reliability is made of."""
    flat: dict[str, Any] = {}
    for name, result in findings.items():
        if result.bins:
            flat[f"{name}.bins-mean"] = [part.mean for part in result.bins]
            flat[f"{name}.bins-studies"] = [part.studies for part in result.bins]
            flat[f"{name}.bins-positives"] = [part.positives for part in result.bins]
        if result.ece is not None:
            flat[f"{name}.ece"] = result.ece
            flat[f"{name}.positives"], flat[f"{name}.negatives"] = result.positives, result.negatives
    return flat


def aggregation_of(report: Report) -> Aggregation | None:
    """Return how the last mean was made; None in a report that does not say."""
    part = report.aggregation
    if part is None:
        return None
    drift = part.drift
    sites = sorted(part.weights)
    return Aggregation(
        round=part.round,
        weights={site: part.weights[site] for site in sites},
        norms=part.norms,
        cosines=part.cosines,
        pairs=part.pairs,
        lora_error=tuple((r.round, r.lora_error) for r in report.rounds if r.lora_error is not None),
        drift_blocks=drift.blocks if drift else (),
        drift_rounds=drift.rounds if drift else (),
        drift=drift.values if drift else (),
    )


def aggregation_part(aggregation: Aggregation | None) -> AggregationPart | None:
    """Lay out how the last mean was made for ``report.json``."""
    if aggregation is None:
        return None
    drift = None
    if aggregation.drift_blocks and aggregation.drift:
        drift = DriftPart(
            blocks=aggregation.drift_blocks, rounds=aggregation.drift_rounds, values=aggregation.drift
        )
    return AggregationPart(
        round=aggregation.round,
        weights=aggregation.weights,
        norms=aggregation.norms,
        cosines=aggregation.cosines,
        pairs=aggregation.pairs,
        drift=drift,
    )
