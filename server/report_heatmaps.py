"""The report's heat maps: every model at every site, how the last mean was made, and drift by block."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from server.facts.records import Aggregation, Matrix
from server.figure_words import (
    DRIFT_CAPTION,
    MATRIX_CAPTION,
    best_models,
    drift_told,
    matrix_told,
    pairs_told,
    percent,
    weights_told,
)
from server.report_figures import WIDTH, Figure, short
from server.report_svg import (
    DIVERGING,
    INK,
    MIDDLE,
    PAGE,
    SEQUENTIAL,
    SERIES,
    SOFT,
    STEPS,
    WORSE,
    canvas,
    markup,
)

Table = Sequence[Sequence[float | None]]

NUMBERED = 12
"""Up to so many sites the cells show their numbers."""
NAMED = 24
"""Up to so many sites the columns of pairs have names; above, they stand in the order of the rows."""
ROW, THIN = 0.3, 0.155
"""Height in inches of a row with numbers, and of one without."""

AGGREGATION_CAPTION = (
    "Left: each site's share of the mean; the dashed line is an equal share. Middle: cosine of its update "
    "with the aggregate; a hollow diamond pulls the other way. Right: cosine of each two sites' updates: "
    "1, they pull the same way; 0, unrelated; below 0, against each other. Columns stand in the order of "
    "the rows."
)


def matrix_plot(matrix: Matrix | None) -> Figure | None:
    """Every model (rows) at every site (columns); None where nothing was measured."""
    known = [value for row in matrix.values for value in row if value is not None] if matrix else []
    if matrix is None or not known:
        return None
    rows, columns = len(matrix.models), len(matrix.sites)
    few = columns <= NUMBERED
    pad = max(0.0, 0.1 - (max(known) - min(known))) / 2
    low, high = min(known) - pad, max(known) + pad
    with canvas(WIDTH, 1.1 + rows * (ROW if few else THIN)) as figure:
        axes, key = figure.subplots(1, 2, width_ratios=[40, 1])
        _cells(axes, matrix.values, SEQUENTIAL, low, high, "{:.3f}" if few else "")
        for row, own in enumerate(matrix.own):
            if own in matrix.sites:
                _outline(axes, row, matrix.sites.index(own))
        best = [(row, column) for column, rows in enumerate(best_models(matrix)) for row in rows]
        aside, above = (0.4, 0.2) if few else (0.0, 0.0)
        axes.plot(
            [column + aside for _, column in best], [row - above for row, _ in best], linewidth=0,
            marker="*", markersize=10 if few else 6, color=PAGE, markeredgecolor=INK, markeredgewidth=0.8,
        )  # fmt: skip
        _names(axes, [short(name, 28) for name in matrix.models], rows)
        _places(axes, [short(name, 18) for name in matrix.sites], top=True)
        _key(key, SEQUENTIAL, low, high, "AUROC")
        svg = markup(figure, "matrix")
    return Figure(svg=svg, alt=matrix_told(matrix), caption=MATRIX_CAPTION)


def aggregation_plot(aggregation: Aggregation | None) -> Figure | None:
    """Weights, cosines with the aggregate, and cosines of pairs; the heaviest site first."""
    if aggregation is None or not aggregation.weights:
        return None
    given = list(aggregation.weights)
    order = sorted(range(len(given)), key=lambda i: -aggregation.weights[given[i]])
    sites = [given[i] for i in order]
    paired = len(sites) > 1 and len(aggregation.pairs) == len(sites)
    few = len(sites) <= NUMBERED
    height = 1.2 + max(3, len(sites)) * (ROW if few else THIN)
    with canvas(WIDTH, height) as figure:
        ratios = [3.0, 2.0, 5.0, 0.14] if paired else [3.0, 2.0]
        panels = figure.subplots(1, len(ratios), width_ratios=ratios)
        _weights(panels[0], aggregation, sites)
        _cosines(panels[1], aggregation, sites)
        for axes in panels[: 3 if paired else 2]:
            _names(axes, [short(site, 20) for site in sites] if axes is panels[0] else [], len(sites))
        if paired:
            table = [[None if i == j else aggregation.pairs[i][j] for j in order] for i in order]
            reach = max(0.2, *(abs(value) for row in table for value in row if value is not None))
            _cells(panels[2], table, DIVERGING, -reach, reach, "{:.2f}" if len(sites) <= 8 else "")
            panels[2].set_title("cosine of pairs")
            _places(panels[2], [short(site, 12) for site in sites] if len(sites) <= NAMED else [])
            _key(panels[3], DIVERGING, -reach, reach, "")
        svg = markup(figure, "aggregation")
    told = weights_told(aggregation) + (f" {pairs_told(aggregation)}" if paired else "")
    return Figure(svg=svg, alt=told, caption=AGGREGATION_CAPTION)


def drift_plot(aggregation: Aggregation | None) -> Figure | None:
    """Distance from the start, blocks x rounds, the part nearest the input at the bottom."""
    if aggregation is None:
        return None
    known = [value for row in aggregation.drift for value in row if value is not None]
    if not known:
        return None
    blocks, rounds = aggregation.drift_blocks, aggregation.drift_rounds
    with canvas(WIDTH, 1.0 + max(3, len(blocks)) * (0.24 if len(blocks) <= 20 else THIN)) as figure:
        axes, key = figure.subplots(1, 2, width_ratios=[40, 1])
        table = [[row[i] for row in aggregation.drift] for i in reversed(range(len(blocks)))]
        _cells(axes, table, SEQUENTIAL, 0.0, max(known) or 1.0)
        _names(axes, [short(name, 28) for name in reversed(blocks)], len(blocks))
        step = max(1, -(-len(rounds) // 12))
        axes.set_xticks(range(0, len(rounds), step), [str(number) for number in rounds[::step]])
        axes.set_xlabel("round")
        _key(key, SEQUENTIAL, 0.0, max(known) or 1.0, "L2 distance")
        svg = markup(figure, "drift")
    return Figure(svg=svg, alt=drift_told(aggregation), caption=DRIFT_CAPTION)


def step_of(value: float, low: float, high: float) -> int:
    """Return the step of a colour scale that a value falls into.

    >>> step_of(0.7, 0.7, 0.8), step_of(0.75, 0.7, 0.8), step_of(0.8, 0.7, 0.8)
    (0, 6, 12)
    """
    place = (value - low) / (high - low) if high > low else 0.5
    return min(STEPS - 1, max(0, int(place * STEPS)))


def _cells(axes: Any, table: Table, hues: Sequence[str], low: float, high: float, write: str = "") -> None:
    """Draw a table as coloured cells, row 0 on top; ``write`` is the format of the numbers, if any.

    Cells of one colour are one path, and equal neighbours without numbers one rectangle: fifty models
    at fifty sites are a few kilobytes.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    gap = 0.03 if len(table[0]) <= 60 else 0.0
    boxes: dict[int, list[Path]] = {}
    for y, row in enumerate(table):
        steps = [None if v is None or not isfinite(v) else step_of(v, low, high) for v in row]
        x = 0
        while x < len(steps):
            step, start = steps[x], x
            x += 1
            while not gap and x < len(steps) and steps[x] == step:
                x += 1
            if step is not None:
                left, right, top, bottom = start - 0.5 + gap, x - 0.5 - gap, y - 0.46, y + 0.46
                corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
                boxes.setdefault(step, []).append(Path(corners, closed=True))
    for step, paths in sorted(boxes.items()):
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), facecolor=hues[step], linewidth=0))
    for y, row in enumerate(table if write else ()):
        for x, value in enumerate(row):
            if value is not None:
                text, hue = write.format(value).replace("-", "−"), on(step_of(value, low, high), hues)
                axes.text(x, y, text, color=hue, ha="center", va="center_baseline", fontsize=8.5)
            elif hues is SEQUENTIAL:
                axes.text(x, y, "n/a", color=SOFT, ha="center", va="center_baseline", fontsize=8)
    axes.set_xlim(-0.5, len(table[0]) - 0.5)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def on(step: int, hues: Sequence[str]) -> str:
    """Return the colour of text on a step: of ink, the page, and what both themes need in between."""
    far, between = (4, 4) if hues is DIVERGING else (2, 1)
    away = abs(step - STEPS // 2) if hues is DIVERGING else step - STEPS // 2
    return PAGE if away > far else MIDDLE if away >= between else INK


def _outline(axes: Any, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, fill=False, edgecolor=INK, linewidth=1.6)
    )


def _key(axes: Any, hues: Sequence[str], low: float, high: float, title: str) -> None:
    """Draw a colour scale's key, low at the bottom."""
    from matplotlib.patches import Rectangle

    width = (high - low) / len(hues)
    for i, hue in enumerate(hues):
        axes.add_patch(Rectangle((0, low + i * width), 1, width, facecolor=hue, linewidth=0))
    axes.set_xlim(0, 1)
    axes.set_ylim(low, high)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel(title)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _names(axes: Any, names: Sequence[str], count: int) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(count - 0.5, -0.5)
    axes.tick_params(axis="both", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _places(axes: Any, names: Sequence[str], top: bool = False) -> None:
    axes.set_xticks(range(len(names)), names)
    turned = max(map(len, names), default=0) * len(names) > 80
    if turned:
        axes.tick_params(axis="x", labelrotation=90)
    if top:
        axes.xaxis.tick_top()


def _weights(axes: Any, aggregation: Aggregation, sites: Sequence[str]) -> None:
    shares = [aggregation.weights[site] for site in sites]
    axes.barh(range(len(sites)), shares, height=0.6, color=SERIES[0], linewidth=0)
    axes.axvline(1 / len(sites), color=INK, linewidth=1.0, linestyle=(0, (3, 3)))
    for y, share in enumerate(shares if len(sites) <= NUMBERED else ()):
        axes.text(
            1.0, y, percent(share), transform=axes.get_yaxis_transform(), ha="right", va="center_baseline"
        )
    axes.set_title("weight in the mean")
    axes.set_xlim(0, max(*shares, 1 / len(sites)) * (1.35 if len(sites) <= NUMBERED else 1.05))
    axes.xaxis.set_major_formatter(lambda share, _: percent(share))
    axes.locator_params(axis="x", nbins=4)


def _cosines(axes: Any, aggregation: Aggregation, sites: Sequence[str]) -> None:
    found = [(y, aggregation.cosines[site]) for y, site in enumerate(sites) if site in aggregation.cosines]
    axes.axvline(0.0, color=SOFT, linewidth=0.8)
    for y, value in found:
        turned = value < 0
        hue = WORSE if turned else SERIES[0]
        axes.plot([0, value], [y, y], color=hue, linewidth=1.0)
        axes.plot(value, y, marker="D" if turned else "o", markersize=5, color=hue,
                  markerfacecolor="none" if turned else hue)  # fmt: skip
    axes.set_xlim(min(0.0, *(value for _, value in found), 0.0) - 0.08, 1.08)
    axes.set_title("cosine with it")
    axes.locator_params(axis="x", nbins=4)
