"""The report's figures that the live page has too: models at sites, calibration, aggregation, drift.

Strength of a colour is its opacity over the page, so that one drawing serves light, dark and print;
the number stands beside or on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from server.facts.records import Bin, Matrix, Reliability
from server.facts.reliability import pooled_bins, pooled_ece
from server.figure_words import (
    DRIFT_CAPTION,
    MATRIX_CAPTION,
    RELIABILITY_CAPTION,
    WEIGHTS_CAPTION,
    arm_words,
    best_models,
    drift_told,
    figures_of,
    matrix_told,
    reliability_told,
    shown_arms,
    weights_told,
)
from server.report_aggregation import as_facts
from server.report_figures import ARM_MARKERS, ARM_ORDER, WIDTH, Figure, short
from server.report_schema import MatrixRow, Report
from server.report_svg import ARMS, GRID, INK, SERIES, SOFT, WORSE, canvas, markup
from server.report_words import number, shown_findings

FEW = 12
"""Up to so many sites every model is a row; above, the models of single sites are summed up."""
_STRONGEST = 0.55
"""Opacity at which the ink on a cell is still easily read."""


def matrix_plot(report: Report) -> Figure | None:
    """Macro AUROC of every model at every site, as a table of cells."""
    if report.matrix is None:
        return None
    whole = matrix_facts(report.matrix)
    shown = whole if len(whole.sites) <= FEW else summed_up(whole)
    values = [value for row in shown.values for value in row if value is not None]
    if not values:
        return None
    # Many sites are rows, so that the figure grows downwards and not sideways.
    upright = shown is not whole
    rows, columns = (shown.sites, shown.models) if upright else (shown.models, shown.sites)
    low, high = min(values), max(values)
    best = best_models(shown)
    with canvas(WIDTH, 0.75 + 0.31 * len(rows)) as figure:
        axes = _cells(figure, rows, columns)
        for model, line in enumerate(shown.values):
            for site, value in enumerate(line):
                x, y = (model, site) if upright else (site, model)
                if value is None:
                    axes.text(x, y, "n/a", color=SOFT, ha="center", va="center", fontsize=8)
                    continue
                _cell(axes, x, y, (value - low) / max(0.1, high - low))
                star = " ★" if model in best[site] else ""
                weight = "bold" if star else "normal"
                axes.text(x, y, f"{number(value)}{star}", ha="center", va="center", fontweight=weight)
                if shown.own[model] == shown.sites[site]:
                    _outline(axes, x, y)
        svg = markup(figure, "matrix")
    caption = MATRIX_CAPTION
    if upright:
        caption = (
            "Macro AUROC at each site (rows) of its own local model, of the best and the median of the "
            "other sites' local models, and of the models made together. Star: the best of these. "
            "Every single model's numbers stand in report.json."
        )
    return Figure(svg=svg, alt=matrix_told(shown), caption=caption)


def matrix_facts(rows: Sequence[MatrixRow]) -> Matrix:
    """Return what the figure and its words are made of."""
    sites = tuple(dict.fromkeys(site for row in rows for site in row.sites))
    cells = [[row.sites.get(site) for site in sites] for row in rows]
    return Matrix(
        finding="",
        models=tuple(f"local of {row.trained_at}" if row.trained_at else row.model for row in rows),
        sites=sites,
        values=tuple(tuple(cell.auroc if cell else None for cell in line) for line in cells),
        intervals=tuple(tuple(cell.interval if cell else None for cell in line) for line in cells),
        own=tuple(row.trained_at or "" for row in rows),
    )


def summed_up(matrix: Matrix) -> Matrix:
    """Put the local models of single sites together: a site's own, the others' best and median."""
    lines: dict[str, list[float | None]] = {"own local": [], "others' best": [], "others' median": []}
    for column, site in enumerate(matrix.sites):
        own, others = None, []
        for maker, row in zip(matrix.own, matrix.values, strict=True):
            value = row[column]
            if maker == site:
                own = value
            elif maker and value is not None:
                others.append(value)
        lines["own local"].append(own)
        lines["others' best"].append(max(others, default=None))
        lines["others' median"].append(sorted(others)[len(others) // 2] if others else None)
    for model, maker, row in zip(matrix.models, matrix.own, matrix.values, strict=True):
        if not maker:
            lines[model] = [*row]
    return Matrix(
        finding=matrix.finding,
        models=tuple(lines),
        sites=matrix.sites,
        values=tuple(map(tuple, lines.values())),
        intervals=tuple((None,) * len(matrix.sites) for _ in lines),
        own=("",) * len(lines),
    )


def reliability_plot(report: Report) -> Figure | None:
    """Observed shares beside predicted probabilities, one panel per finding, before and after."""
    panels = [found for name in shown_findings(report) if (found := reliability_facts(report, name))]
    if not panels:
        return None
    columns = min(4, max(2, len(panels)))
    lines = -(-len(panels) // columns)
    with canvas(WIDTH, lines * 2.75 + 0.45) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, found in zip(grid.flat, panels, strict=False):
            _panel(axes, found)
        figure.supxlabel("mean predicted probability", fontsize=9)
        figure.supylabel("share with the finding", fontsize=9)
        arms = list(dict.fromkeys(arm for found in panels for arm in shown_arms(found)))
        figure.legend(handles=[_key(arm) for arm in arms], loc="outside upper left", ncols=len(arms))
        svg = markup(figure, "reliability")
    caption = RELIABILITY_CAPTION + " All sites' studies together; ECE above each panel."
    return Figure(svg=svg, alt=" ".join(map(reliability_told, panels)), caption=caption)


def reliability_facts(report: Report, finding: str) -> Reliability | None:
    """Put the sites' bins of a finding together; None where no site sent any."""
    arms: dict[str, tuple[Bin, ...]] = {}
    ece: dict[str, float | None] = {}
    for name, arm in report.arms.items():
        results = [site.findings[finding] for site in arm.sites.values() if finding in site.findings]
        bins = [(part.mean, part.studies, part.positives) for result in results for part in result.bins]
        if bins:
            arms[name] = pooled_bins(bins)
            known = [(r.ece, r.positives + r.negatives) for r in results if r.ece is not None]
            ece[name] = pooled_ece(known)
    return Reliability(finding, "", arms, ece) if arms else None


def _panel(axes: Any, found: Reliability) -> None:
    arms = shown_arms(found)
    top = max(max(part.mean, part.interval[1]) for arm in arms for part in found.arms[arm])
    top = next((end for end in (0.1, 0.2, 0.4, 0.6, 0.8) if top <= end), 1.0)
    axes.plot([0, top], [0, top], color=SOFT, linewidth=1.0, linestyle=(0, (4, 3)))
    for arm in arms:
        bins, (hue, marker) = found.arms[arm], _look(arm)
        most = max(part.studies for part in bins)
        axes.plot([b.mean for b in bins], [b.share for b in bins], color=hue, linewidth=1.0)
        for part in bins:
            axes.plot([part.mean] * 2, part.interval, color=hue, linewidth=0.9)
            size = 3.5 + 5 * math.sqrt(part.studies / most)
            axes.plot(part.mean, part.share, marker=marker, color=hue, markersize=size, linewidth=0)
    told = [found.ece.get(arm) for arm in arms]
    errors = " → ".join("n/a" if error is None else number(error) for error in told)
    axes.set_title(f"{short(found.finding.replace('_', ' '), 20)}\nECE {errors}", fontsize=9)
    axes.set_xlim(-0.02 * top, 1.02 * top)
    axes.set_ylim(-0.02 * top, 1.02 * top)
    axes.set_box_aspect(1)
    axes.set_xticks([0, top / 2, top])
    axes.set_yticks([0, top / 2, top])


def _look(arm: str) -> tuple[str, str]:
    """Colour and marker of an arm: after calibration differs from before in both."""
    if arm == "calibrated":
        return ARMS[2], "D"
    place = ARM_ORDER.index(arm) if arm in ARM_ORDER else 3
    return ARMS[place], ARM_MARKERS[place] if place != 1 else "o"


def _key(arm: str) -> Any:
    from matplotlib.lines import Line2D

    hue, marker = _look(arm)
    words = arm_words(arm)
    label = words if words == arm else f"{words} ({arm} model)"
    return Line2D([], [], color=hue, marker=marker, markersize=6, linewidth=1.0, label=label)


def weights_plot(report: Report) -> Figure | None:
    """Each site's share of the last mean, and how far its update pulled the same way."""
    if report.aggregation is None or not report.aggregation.weights:
        return None
    found = as_facts(report.aggregation)
    sites = sorted(found.weights, key=lambda site: -found.weights[site])
    rows = [*range(len(sites))]
    with canvas(WIDTH, 0.9 + 0.27 * len(sites)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2), squeeze=True)
        shares = [100 * found.weights[site] for site in sites]
        left.barh(rows, shares, color=SERIES[0], height=0.6)
        left.axvline(100 / len(sites), color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        names = [f"{short(site, 24)}   {share:.1f} %" for site, share in zip(sites, shares, strict=True)]
        left.set_yticks(rows, names)
        left.set_ylim(len(sites) - 0.4, -0.6)
        left.set_xlabel("weight in the mean, %")
        right.axvline(0.0, color=INK, linewidth=1.0)
        for y, site in enumerate(sites):
            cosine = found.cosines.get(site)
            if cosine is None:
                right.text(0.02, y, "n/a", color=SOFT, va="center", fontsize=8)
                continue
            hue, fill = (WORSE, "none") if cosine < 0 else (SERIES[0], SERIES[0])
            right.plot([0, cosine], [y, y], color=GRID, linewidth=1.6)
            right.plot(cosine, y, marker="D" if cosine < 0 else "o", color=hue, markerfacecolor=fill)
            right.text(1.12, y, number(cosine, 2), va="center", ha="left", fontsize=8)
        right.set_xlim(min(0.0, *found.cosines.values(), 0.0) - 0.06, 1.06)
        right.set_xlabel("cosine with the aggregate")
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
        svg = markup(figure, "weights")
    return Figure(svg=svg, alt=weights_told(found), caption=WEIGHTS_CAPTION)


def drift_plot(report: Report) -> Figure | None:
    """How far each part of the adapter went over the rounds, the part nearest the input below."""
    if report.aggregation is None or not report.aggregation.drift:
        return None
    found = as_facts(report.aggregation)
    values = [value for row in found.drift for value in row if value is not None]
    if not values:
        return None
    most = max(values) or 1.0
    blocks, rounds = found.drift_blocks[::-1], found.drift_rounds
    with canvas(WIDTH, 0.75 + 0.25 * len(blocks)) as figure:
        axes = _cells(figure, blocks, [str(number) for number in rounds], top=False)
        step = -(-len(rounds) // 12)
        axes.set_xticks([*range(len(rounds))][::-step], [str(number) for number in rounds][::-step])
        axes.set_xlabel("round")
        for x, line in enumerate(found.drift):
            for y, value in enumerate(line[::-1]):
                if value is not None:
                    _cell(axes, x, y, value / most, strongest=0.9)
        for y, value in enumerate(found.drift[-1][::-1]):
            if value is not None:
                axes.text(len(rounds) - 0.35, y, figures_of(value), va="center", ha="left", fontsize=8)
        svg = markup(figure, "drift")
    caption = f"{DRIFT_CAPTION} The numbers are those after round {rounds[-1]}."
    return Figure(svg=svg, alt=drift_told(found), caption=caption)


def _cells(figure: Any, rows: Sequence[str], columns: Sequence[str], top: bool = True) -> Any:
    """Give axes for a table of cells, its first row on top."""
    axes = figure.add_subplot()
    axes.set_yticks([*range(len(rows))], [short(name, 30) for name in rows])
    most = max(6, 96 // max(1, len(columns)))
    axes.set_xticks([*range(len(columns))], [short(name, most) for name in columns])
    if top:
        axes.xaxis.tick_top()
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _cell(axes: Any, x: int, y: int, strength: float, strongest: float = _STRONGEST) -> None:
    from matplotlib.patches import Rectangle

    opacity = round(strongest * min(1.0, max(0.0, strength)), 3)
    axes.add_patch(
        Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=SERIES[0], alpha=opacity, linewidth=0)
    )


def _outline(axes: Any, x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, facecolor="none", edgecolor=INK, linewidth=1.5)
    )
