"""The report's part on all sites' test studies together: ranking within a bound, and calibration compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Self

from pydantic import NonNegativeInt, model_validator

from common.metrics.calibration import BINS, bin_of
from common.metrics.summary import SiteMetrics
from common.protocol import CALIBRATED, FEDERATED, OWN_BIAS, TEMPERATURE
from server.pooled import pooled_areas, pooled_macro
from server.report_run import Name, Part, Share

if TYPE_CHECKING:
    from server.report_schema import Report, SiteResult

_CALIBRATIONS = {
    FEDERATED: "as trained",
    TEMPERATURE: "one temperature for all findings",
    CALIBRATED: "slope and bias of each finding (Platt)",
    OWN_BIAS: "the same, and each site's own bias",
}


class PooledArea(Part):
    """AUROC over several sites' test studies together, from counts in cells of the score."""

    auroc: Share
    """An estimate; within the bound, not in its middle."""
    low: Share
    """The AUROC of the pooled studies is not below this."""
    high: Share
    """Nor above this."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.low <= self.auroc <= self.high:
            raise ValueError(f"{self.auroc} is not within {self.low} to {self.high}")
        return self


class PooledFinding(PooledArea):
    """One finding over the sites that told of it, as `pooled.ARM`."""

    positives: NonNegativeInt
    """Test studies with the finding, over `sites`."""
    negatives: NonNegativeInt
    """Test studies annotated without it, over `sites`."""
    sites: tuple[Name, ...]
    """Sites whose studies these are."""


class PooledArm(Part):
    """How one arm ranks all sites' test studies together."""

    macro: PooledArea
    """Mean over `findings`, of the estimates and of the bounds."""
    findings: dict[Name, PooledFinding]
    """Finding to its AUROC; one that no site may tell of is absent."""


@dataclass(frozen=True)
class CalibrationRow:
    """How far one way of calibrating leaves probabilities from what they say."""

    words: str
    ece: float
    """Mean over sites of the pooled ECE, weighted by their test studies."""
    worst: float
    site: str
    """Where it is worst."""
    together: float | None
    """Pooled ECE over all sites' decisions, from the bins that they told: joined bins hide a part of it."""


def pooled_part(
    results: Mapping[str, Mapping[str, SiteMetrics]], findings: Sequence[str]
) -> dict[str, PooledArm] | None:
    """Lay out the AUROC over all sites of every arm that sites told the cells of; None without any.

    ``results`` maps an arm to the sites' metrics.
    """
    arms: dict[str, PooledArm] = {}
    for arm, sites in results.items():
        areas = pooled_areas(sites, findings)
        macro = pooled_macro(areas)
        if macro is None:
            continue
        told = {
            finding: PooledFinding(
                auroc=area.auroc,
                low=area.low,
                high=area.high,
                positives=area.positives,
                negatives=area.negatives,
                sites=area.sites,
            )
            for finding, area in areas.items()
        }
        auroc, low, high = macro
        arms[arm] = PooledArm(macro=PooledArea(auroc=auroc, low=low, high=high), findings=told)
    return arms or None


def calibration_rows(report: Report) -> list[CalibrationRow]:
    """Return the ways of calibrating that were compared, in words; none where only one was measured."""
    rows = []
    for arm, words in _CALIBRATIONS.items():
        sites = report.arms[arm].sites if arm in report.arms else {}
        known = {s: (r.pooled_ece, r.studies) for s, r in sites.items() if r.pooled_ece is not None}
        weight = sum(studies for _, studies in known.values())
        if not weight:
            continue
        mean = fsum(error * studies for error, studies in known.values()) / weight
        worst = max(known, key=lambda site: known[site][0])
        rows.append(CalibrationRow(words, mean, known[worst][0], worst, _together(sites.values())))
    return rows if len(rows) > 1 else []


def _together(sites: Iterable[SiteResult]) -> float | None:
    """ECE over the bins of all findings and sites, put together in fifteenths of the probability."""
    bins = [part for site in sites for result in site.findings.values() for part in result.bins]
    if not bins:
        return None
    gaps = [0.0] * BINS
    for part in bins:
        gaps[bin_of(part.mean)] += part.mean * part.studies - part.positives
    return fsum(map(abs, gaps)) / sum(part.studies for part in bins)
