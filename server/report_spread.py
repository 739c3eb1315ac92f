"""The report's figures where there are too many sites to show each: their mean, their spread, the worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import fsum
from typing import Any

import numpy as np

from server.facts.curves import over_sites
from server.facts.records import Curve
from server.figure_words import curve_told
from server.report_figures import (
    WIDTH,
    Figure,
    arm_keys,
    arm_style,
    ranked_arms,
    shade_abandoned,
    short,
)
from server.report_schema import Report, RoundPart
from server.report_svg import INK, SERIES, SOFT, WORSE, canvas, markup
from server.report_words import counted, number, shown_findings

MANY = 12
"""More sites than this are shown by their spread."""


def curves_plot(report: Report) -> Figure | None:
    """Validation AUROC and training loss over the rounds."""
    curves = [
        (_curve(report.rounds, "auroc", lambda part: part.validation_auroc), "Validation macro AUROC"),
        (_curve(report.rounds, "loss", lambda part: part.loss), "Training loss"),
    ]
    if not any(curve.rounds for curve, _ in curves):
        return None
    with canvas(WIDTH, 3.6) as figure:
        for axes, (curve, title) in zip(figure.subplots(1, 2), curves, strict=True):
            _spread(axes, curve, report.rounds)
            axes.set_title(title)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels))
        svg = markup(figure, "curves")
    return Figure(
        svg=svg,
        alt=" ".join(curve_told(curve) for curve, _ in curves if curve.rounds),
        caption="Bold: mean of the sites. Dark band: the middle half of the sites; pale: from the lowest "
        "to the highest. Dashed: the worst site of each round. A shaded round was abandoned.",
    )


def _curve(rounds: Sequence[RoundPart], metric: str, values: Callable[[RoundPart], dict[str, Any]]) -> Curve:
    series: dict[str, list[tuple[int, float]]] = {}
    for part in rounds:
        for site, value in values(part).items():
            if value is not None:
                series.setdefault(site, []).append((part.round, value))
    return over_sites(series, metric)


def _spread(axes: Any, curve: Curve, rounds: Sequence[RoundPart]) -> None:
    from matplotlib.ticker import MaxNLocator

    shade_abandoned(axes, rounds)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round")
    if not curve.rounds:
        return
    values = np.array([[np.nan if v is None else v for v in row] for row in curve.sites.values()])
    lowest, highest = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    low, high, mean, worst = (
        np.array([np.nan if v is None else v for v in row])
        for row in (curve.low, curve.high, curve.mean, curve.worst)
    )
    axes.fill_between(
        curve.rounds, lowest, highest, color=SERIES[0], alpha=0.14, linewidth=0, label="all sites"
    )
    axes.fill_between(curve.rounds, low, high, color=SERIES[0], alpha=0.3, linewidth=0, label="middle half")
    axes.plot(curve.rounds, worst, color=WORSE, linewidth=1.2, linestyle=(0, (4, 2)), label="worst site")
    axes.plot(curve.rounds, mean, color=INK, linewidth=2.2, label="mean of sites")


def findings_plot(report: Report) -> Figure | None:
    """AUROC of every finding under every arm, over the sites."""
    findings = shown_findings(report)
    arms = ranked_arms(report)
    told = {
        (name, finding): sorted(
            result.findings[finding].auroc or 0.0
            for result in arm.sites.values()
            if finding in result.findings and result.findings[finding].auroc is not None
        )
        for name, arm in arms.items()
        for finding in findings
    }
    if not any(told.values()):
        return None
    slots = len(arms)
    with canvas(WIDTH, 0.9 + len(findings) * (0.22 + 0.11 * slots)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0.5, color=SOFT, linewidth=0.8, linestyle=(0, (3, 3)))
        for i, name in enumerate(arms):
            hue, marker = arm_style(name, report)
            shift = 0.8 * (i - (slots - 1) / 2) / max(2, slots)
            for y, finding in enumerate(findings):
                values = told[name, finding]
                if values:
                    _range(axes, y + shift, values, hue, marker)
        axes.set_yticks(range(len(findings)), [short(name.replace("_", " "), 28) for name in findings])
        axes.set_ylim(len(findings) - 0.4, -0.6)
        axes.set_xlim(min(0.45, axes.get_xlim()[0]), 1.01)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("AUROC")
        figure.legend(handles=arm_keys(report, thumbnail=False), loc="outside upper left", ncols=slots)
        svg = markup(figure, "findings")
    sites = len({site for arm in report.arms.values() for site in arm.sites})
    best = "federated" if "federated" in report.arms else next(iter(report.arms))
    means = [
        f"{finding.replace('_', ' ')} {number(fsum(values) / len(values))}"
        for finding in findings
        if (values := told[best, finding])
    ]
    return Figure(
        svg=svg,
        alt=f"AUROC over {counted(sites, 'site')}; means of the {best} arm: {', '.join(means)}. "
        "The numbers of each site stand in the tables.",
        caption="Marker: mean of the sites that annotate the finding. Thick line: the middle half of them; "
        "thin: from the lowest to the highest. The dashed line at 0.5 is chance.",
    )


def _range(axes: Any, y: float, values: Sequence[float], hue: str, marker: str) -> None:
    low, high = np.quantile(values, [0.25, 0.75])
    axes.plot([values[0], values[-1]], [y, y], color=hue, linewidth=0.8)
    axes.plot([low, high], [y, y], color=hue, linewidth=2.4, solid_capstyle="butt")
    axes.plot(fsum(values) / len(values), y, marker=marker, color=hue, markersize=5)
