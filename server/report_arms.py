"""From what the sites measured to the arms, the comparison and the list of sites that lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import fsum, sqrt

from common.errors import DataError
from common.metrics import Difference, FindingMetrics, SiteMetrics
from common.metrics.calibration import coarse_bins
from common.protocol import OWN_MODEL
from server.report_held_out import ALL_BUT, left_out_models
from server.report_schema import (
    Arm,
    BinResult,
    Comparison,
    FindingResult,
    Gap,
    MatrixCell,
    MatrixFigure,
    MatrixRow,
    SiteResult,
    WorseSite,
    WorstSite,
)
from server.report_worse import MACRO, area_of

NORMAL_95 = 1.959963984540054
"""Standard normal quantile at 0.975."""


def site_mean_interval(values: Sequence[float], ses: Sequence[float | None]) -> tuple[float, float] | None:
    """Return the 95 % interval of the plain mean over S sites, or of a mean difference.

    No patient is at two sites, so the sites' errors are independent and the standard error of
    the mean is sqrt(sum_s se_s^2) / S; the interval is normal. It speaks of other test patients
    at *these* sites, not of other sites. ``None`` without sites, or when a site has no
    standard error.

    >>> low, high = site_mean_interval([0.7, 0.8], [0.03, 0.04])
    >>> round(low, 3), round(high, 3)
    (0.701, 0.799)

    Raises:
        DataError: if the lengths differ.
    """
    if len(values) != len(ses):
        raise DataError(
            "each site's value needs its standard error",
            found=f"{len(values)} values, {len(ses)} standard errors",
        )
    known = [se for se in ses if se is not None]
    if not values or len(known) < len(values):
        return None
    mean = fsum(values) / len(values)
    reach = NORMAL_95 * sqrt(fsum(se * se for se in known)) / len(values)
    return mean - reach, mean + reach


def site_result(metrics: SiteMetrics) -> SiteResult:
    """Put a site's metrics into the report's shape."""
    return SiteResult(
        studies=metrics.studies,
        macro_auroc=metrics.macro_auroc,
        interval=metrics.macro_interval,
        pooled_ece=metrics.pooled_ece,
        findings={name: _finding_result(m) for name, m in metrics.findings.items()},
    )


def _finding_result(metrics: FindingMetrics) -> FindingResult:
    told = asdict(replace(metrics, bins=coarse_bins(metrics.bins)))
    bins = [{name: part[name] for name in BinResult.model_fields} for part in told.pop("bins")]
    return FindingResult(**told, bins=tuple(BinResult(**part) for part in bins))


def build_arm(description: str, local_steps: Mapping[str, int], results: Mapping[str, SiteMetrics]) -> Arm:
    """Gather one arm over its sites; sites without a defined macro AUROC do not enter the mean.

    With a single such site, its own interval is the mean's.
    """
    defined = {
        site: (metrics.macro_auroc, metrics.macro_se)
        for site, metrics in results.items()
        if metrics.macro_auroc is not None
    }
    values = [value for value, _ in defined.values()]
    interval = site_mean_interval(values, [se for _, se in defined.values()])
    if len(defined) == 1:
        interval = results[next(iter(defined))].macro_interval
    worst = min(defined, key=lambda site: defined[site][0], default=None)
    return Arm(
        description=description,
        local_steps=dict(local_steps),
        site_mean_auroc=fsum(values) / len(values) if values else None,
        interval=(max(0.0, interval[0]), min(1.0, interval[1])) if interval else None,
        worst_site=None if worst is None else WorstSite(site=worst, auroc=defined[worst][0]),
        sites={site: site_result(metrics) for site, metrics in results.items()},
    )


def build_matrix(results: Mapping[str, Mapping[str, SiteMetrics]]) -> tuple[MatrixRow, ...] | None:
    """Lay out every model at every site, or None where no site's own model was measured elsewhere.

    ``results`` maps an arm to the sites' metrics. A site's own model is the arm ``local`` at that
    site and ``local:SITE`` at the others.
    """
    elsewhere = {
        arm.removeprefix(OWN_MODEL): sites for arm, sites in results.items() if arm.startswith(OWN_MODEL)
    }
    if not elsewhere:
        return None
    at_home = results.get("local", {})
    rows = []
    for site in sorted({*elsewhere, *at_home}):
        home = {site: at_home[site]} if site in at_home else {}
        rows.append(_matrix_row(f"{OWN_MODEL}{site}", site, {**elsewhere.get(site, {}), **home}))
    shared = [arm for arm in ("federated", "pooled") if arm in results]
    return (*rows, *(_matrix_row(arm, None, results[arm]) for arm in shared))


def build_left_out(results: Mapping[str, Mapping[str, SiteMetrics]]) -> tuple[MatrixRow, ...] | None:
    """Lay out the model without each site at every site, or None where no site was left out."""
    models = left_out_models(results)
    return tuple(_matrix_row(f"{ALL_BUT}{site}", None, of) for site, of in models.items()) or None


def _matrix_row(model: str, trained_at: str | None, results: Mapping[str, SiteMetrics]) -> MatrixRow:
    return MatrixRow(
        model=model,
        trained_at=trained_at,
        sites={
            site: MatrixCell(
                auroc=metrics.macro_auroc,
                interval=metrics.macro_interval,
                findings={
                    name: MatrixFigure(auroc=m.auroc, interval=m.interval)
                    for name, m in metrics.findings.items()
                },
            )
            for site, metrics in sorted(results.items())
        },
    )


def build_comparison(
    macro: Mapping[str, Difference | None], candidate: str = "federated", reference: str = "local"
) -> Comparison | None:
    """Gather the sites' paired macro differences; ``None`` when no site has one.

    With a single such site, its own interval is the mean's.
    """
    defined = {site: gap for site, gap in macro.items() if gap is not None}
    gaps = [gap.difference for gap in defined.values()]
    interval = site_mean_interval(gaps, [gap.se for gap in defined.values()])
    if interval is None:
        return None
    if len(defined) == 1:
        interval = next(iter(defined.values())).interval
    return Comparison(
        candidate=candidate,
        reference=reference,
        site_mean=Gap(difference=fsum(gaps) / len(gaps), interval=interval),
        sites={site: Gap(difference=gap.difference, interval=gap.interval) for site, gap in defined.items()},
    )


def find_worse(
    local: Arm,
    federated: Arm,
    macro: Mapping[str, Difference | None],
    findings: Mapping[str, Mapping[str, Difference]],
) -> tuple[WorseSite, ...]:
    """List every site, and every finding at a site, where federated is below local; worst first."""
    worse = []
    for site in federated.sites:
        gaps = {MACRO: macro.get(site), **findings.get(site, {})}
        for finding, gap in gaps.items():
            before = area_of(local.sites.get(site), finding)
            after = area_of(federated.sites[site], finding)
            if gap is None or gap.difference >= 0 or before is None or after is None:
                continue
            worse.append(
                WorseSite(
                    site=site,
                    finding=finding,
                    local=before,
                    federated=after,
                    difference=gap.difference,
                    interval=gap.interval,
                    certain=gap.interval[1] < 0,
                )
            )
    return tuple(sorted(worse, key=lambda entry: entry.difference))
