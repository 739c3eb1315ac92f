"""The benchmark's figures: wins and losses, accuracy against bytes, curves over an axis, calibration.

Each returns a `Figure`, or None where there is nothing to draw. Colour is never the only sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.report_figures import GULF, SITE_MARKERS, WIDTH, Figure, short
from server.report_svg import BETTER, GRID, INK, SERIES, SOFT, WORSE, canvas, markup
from server.report_words import between, number, signed, size
from simulations.benchmark.cells import label, shown
from simulations.benchmark.contrasts import FEDERATED, Estimate, Outcome
from simulations.benchmark.grid import LOWER_IS_BETTER, METRIC_WORDS, VARIANT
from simulations.benchmark.summary import Line, Summary, calibrations

_TONES = {"better": BETTER, "worse": WORSE, "unclear": SOFT}


def forests(rows: Sequence[Outcome]) -> list[Figure]:
    """Draw the differences, one figure for each metric."""
    metrics = dict.fromkeys(row.contrast.metric for row in rows)
    drawn = [forest([r for r in rows if r.contrast.metric == m], f"contrasts-{m}") for m in metrics]
    return [figure for figure in drawn if figure is not None]


def forest(rows: Sequence[Outcome], name: str) -> Figure | None:
    """Differences in one metric with their intervals, a row each; ``name`` keeps drawings apart."""
    told = [(row, row.difference) for row in rows if row.difference is not None]
    if not told:
        return None
    metric = told[0][0].contrast.metric
    ends = [end for _, gap in told for end in (gap.interval or (gap.value, gap.value))]
    low, high = min(0.0, *ends), max(0.0, *ends)
    pad = max(0.004, 0.06 * (high - low))
    with canvas(WIDTH, 1.1 + 0.36 * len(told)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0.0, color=INK, linewidth=1.0)
        for y, (row, gap) in enumerate(told):
            hue = _TONES[row.verdict]
            axes.plot(gap.interval or (gap.value,) * 2, [y, y], color=hue, linewidth=2.0)
            fill = "none" if row.verdict == "unclear" else hue
            axes.plot(gap.value, y, marker="s", markersize=7, color=hue, markerfacecolor=fill)
            text = f"{signed(gap.value)}   {f'({between(gap.interval, signed)})' if gap.interval else ''}"
            axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center")
        axes.set_yticks(range(len(told)), [short(_row_name(row), 52) for row, _ in told])
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(len(told) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        ways = ("second better", "first better")
        left, right = reversed(ways) if metric in LOWER_IS_BETTER else ways
        axes.set_xlabel(f"← {left}{GULF}{METRIC_WORDS[metric]}, first minus second{GULF}{right} →")
        svg = markup(figure, name)
    words = "; ".join(f"{_row_name(row)} {signed(gap.value)}" for row, gap in told)
    return Figure(
        svg=svg,
        alt=f"Forest plot of differences in {METRIC_WORDS[metric]}: {words}.",
        caption="Lines are 95 % intervals. Filled: the whole interval lies on one side of zero. Hollow: "
        "within noise.",
    )


def _row_name(row: Outcome) -> str:
    return f"{row.contrast.name}, {label(row.at)}" if row.at else row.contrast.name


def frontier(summary: Summary) -> Figure | None:
    """The federated model's score against what all sites sent, one panel for each value of the first axis."""
    metric, lines = summary.grid.metric, [line for line in summary.lines if _score(line, summary) is not None]
    if len({line.bytes_up for line in lines}) < 2:
        return None
    panels = _panels(summary, lines)
    variants = list(dict.fromkeys(_series(line) for line in lines))
    with canvas(WIDTH, 3.4 * -(-len(panels) // 3) + 0.4) as figure:
        columns = min(3, len(panels))
        grid = figure.subplots(-(-len(panels) // columns), columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, members) in zip(grid.flat, panels.items(), strict=False):
            axes.set_title(title)
            axes.set_xscale("log")
            best = _pareto(members, summary)
            axes.plot(
                [line.bytes_up for line in best], [_value(line, summary) for line in best],
                color=GRID, linewidth=1.5, drawstyle="steps-post", zorder=1,
            )  # fmt: skip
            for line in members:
                i = variants.index(_series(line))
                score = _score(line, summary)
                if score is not None:
                    _point(axes, line.bytes_up, score, i)
            axes.set_xlabel("bytes sent by all sites")
            axes.set_xticks(_apart([line.bytes_up for line in members]))
            axes.xaxis.set_major_formatter(lambda x, _: size(x))
            axes.xaxis.set_minor_formatter(lambda x, _: "")
            axes.margins(x=0.15)
        grid[0, 0].set_ylabel(METRIC_WORDS[metric])
        _legend(figure, variants)
        svg = markup(figure, "frontier")
    words = "; ".join(
        f"{line.label} {number(_value(line, summary))} for {size(line.bytes_up)}" for line in lines
    )
    return Figure(
        svg=svg,
        alt=f"{METRIC_WORDS[metric]} against bytes sent: {words}.",
        caption="Mean over seeds and sites with 95 % interval. The stepped line joins what nothing else "
        "beats for as few bytes.",
    )


def curves(summary: Summary) -> list[Figure]:
    """Score over each axis of numbers, such as shots or the share of the labels."""
    drawn = []
    for key, values in summary.grid.axes.items():
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if numeric and len(values) > 1 and (figure := _curve(summary, key, values)):
            drawn.append(figure)
    return drawn


def _curve(summary: Summary, key: str, values: Sequence[float]) -> Figure | None:
    # Shots of 0 are all studies there are.
    places = sorted(values, key=lambda v: float("inf") if key == "data.shots" and v == 0 else v)
    series: dict[str, dict[float, Estimate]] = {}
    for line in summary.lines:
        score = _score(line, summary)
        if score is not None:
            rest = {name: value for name, value in line.coordinates.items() if name != key}
            series.setdefault(label(rest), {})[line.coordinates[key]] = score
    if not series:
        return None
    with canvas(WIDTH, 3.6) as figure:
        axes = figure.add_subplot()
        for i, points in enumerate(series.values()):
            shift = 0.04 * (i - (len(series) - 1) / 2)
            xs = [places.index(v) + shift for v in places if v in points]
            axes.plot(
                xs, [points[v].value for v in places if v in points], color=SERIES[i % len(SERIES)],
                linestyle="-" if i < len(SERIES) else "--", linewidth=1.5,
            )  # fmt: skip
            for x, v in zip(xs, [v for v in places if v in points], strict=True):
                _point(axes, x, points[v], i)
        names = ["all" if key == "data.shots" and v == 0 else shown(v) for v in places]
        axes.set_xticks(range(len(places)), names)
        axes.set_xlabel(key)
        axes.set_ylabel(METRIC_WORDS[summary.grid.metric])
        _legend(figure, list(series))
        svg = markup(figure, f"curve-{list(summary.grid.axes).index(key)}")
    told = "; ".join(
        f"{name}: " + ", ".join(f"{number(p.value)} at {shown(v)}" for v, p in sorted(points.items()))
        for name, points in series.items()
    )
    return Figure(
        svg=svg,
        alt=f"{METRIC_WORDS[summary.grid.metric]} over {key}. {told}.",
        caption="Mean over seeds and sites of the federated model, with 95 % intervals.",
    )


def calibration(summary: Summary) -> Figure | None:
    """Pooled ECE of the federated model before and after its probabilities were scaled."""
    lines = [line for line in summary.lines if calibrations(line)]
    if not lines:
        return None
    arms = [FEDERATED, *dict.fromkeys(arm for line in lines for arm in calibrations(line))]
    with canvas(WIDTH, 1.1 + 0.36 * len(lines)) as figure:
        axes = figure.add_subplot()
        for y, line in enumerate(lines):
            found = [
                (i, score.value)
                for i, arm in enumerate(arms)
                if (score := line.scores.get(arm, {}).get("pooled_ece")) is not None
            ]
            axes.plot([v for _, v in found], [y] * len(found), color=GRID, linewidth=2.0, zorder=1)
            for i, value in found:
                axes.plot(value, y, marker=SITE_MARKERS[i], color=SERIES[i], markersize=7, linewidth=0)
        axes.set_yticks(range(len(lines)), [short(line.label, 52) for line in lines])
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlim(left=0.0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("pooled ECE on test studies; lower is better")
        _legend(figure, ["before" if arm == FEDERATED else arm for arm in arms])
        svg = markup(figure, "calibration")
    return Figure(
        svg=svg,
        alt="Pooled ECE before and after calibration; the same numbers stand in the table.",
        caption="Mean over seeds and sites. Fitted on validation studies, measured on test studies.",
    )


def _score(line: Line, summary: Summary) -> Estimate | None:
    return line.scores.get(FEDERATED, {}).get(summary.grid.metric)


def _value(line: Line, summary: Summary) -> float:
    score = _score(line, summary)
    return float("nan") if score is None else score.value


def _series(line: Line) -> str:
    """What has one colour: a variant, or without variants every point by itself."""
    return str(line.coordinates.get(VARIANT, line.label))


def _panels(summary: Summary, lines: Sequence[Line]) -> Mapping[str, list[Line]]:
    key = next(iter(summary.grid.axes), None) if summary.grid.variants else None
    panels: dict[str, list[Line]] = {}
    for line in lines:
        title = f"{key} {shown(line.coordinates[key])}" if key else ""
        panels.setdefault(title, []).append(line)
    return panels


def _pareto(lines: Sequence[Line], summary: Summary) -> list[Line]:
    """What no other beats for as few bytes, from the cheapest on."""
    sign = -1.0 if summary.grid.metric in LOWER_IS_BETTER else 1.0
    best: list[Line] = []
    for line in sorted(lines, key=lambda one: (one.bytes_up, -sign * _value(one, summary))):
        if not best or sign * _value(line, summary) > sign * _value(best[-1], summary):
            best.append(line)
    return best


def _apart(values: Sequence[float], factor: float = 3.0) -> list[float]:
    """Keep, of values in rising order, those a factor apart: labels must not overlap.

    >>> _apart([100, 120, 900])
    [100, 900]
    """
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value >= factor * kept[-1]:
            kept.append(value)
    return kept


def _point(axes: Any, x: float, score: Estimate, i: int) -> None:
    hue = SERIES[i % len(SERIES)]
    if score.interval:
        axes.plot([x, x], score.interval, color=hue, linewidth=1.2)
    axes.plot(x, score.value, marker=SITE_MARKERS[i % len(SITE_MARKERS)], color=hue, markersize=6)


def _legend(figure: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    keys = [
        Line2D(
            [], [], color=SERIES[i % len(SERIES)], marker=SITE_MARKERS[i % len(SITE_MARKERS)],
            linewidth=0, markersize=6, label=short(name, 40),
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    columns = max(1, min(len(names), 110 // (8 + max(map(len, names)))))
    figure.legend(handles=keys, loc="outside lower left", ncols=columns)
