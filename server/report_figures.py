"""The report's figures: who gained, finding by finding, and how training went.

Each function returns a `Figure` or ``None`` where there is nothing to draw. Colour is never the
only sign: arms and sites differ in marker too, and what is certain is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.protocol import SAME_RANKING
from server.report_schema import ARM_ORDER, Arm, Gap, Report, RoundPart
from server.report_svg import ARMS, BETTER, GRID, INK, SERIES, SOFT, WORSE, canvas, markup
from server.report_words import between, by_gain, shown_findings, signed

WIDTH = 10.0
GULF = "\u2003" * 4
"""Space that HTML does not collapse."""
ARM_MARKERS = ("o", "D", "^", "s", "v", "P", "X")
SITE_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Figure:
    """An inline drawing, what it shows in words, and how to read it."""

    svg: str
    alt: str
    caption: str


def forest_plot(report: Report) -> Figure | None:
    """Candidate minus reference at each site, worst first, with the site mean as a diamond."""
    if report.comparison is None:
        return None
    against = report.comparison
    rows = sorted(against.sites.items(), key=lambda item: item[1].difference)
    low = min(0.0, against.site_mean.interval[0], *(gap.interval[0] for _, gap in rows))
    high = max(0.0, against.site_mean.interval[1], *(gap.interval[1] for _, gap in rows))
    pad = max(0.01, 0.06 * (high - low))
    with canvas(WIDTH, 1.35 + 0.36 * (len(rows) + 1)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0.0, color=INK, linewidth=1.0)
        for place, (_, gap) in enumerate(rows):
            _whisker(axes, place, gap)
        mean, (left, right) = against.site_mean.difference, against.site_mean.interval
        y = len(rows) + 0.15
        places = [*range(len(rows)), y]
        axes.axhline(len(rows) - 0.45, color=GRID, linewidth=0.8)
        axes.fill([left, mean, right, mean], [y, y - 0.25, y, y + 0.25], color=INK, linewidth=0)
        axes.set_yticks(places, [*(short(site, 32) for site, _ in rows), "mean of sites"])
        for y_text, gap in zip(places, [*dict(rows).values(), against.site_mean], strict=True):
            text = f"{signed(gap.difference)}   ({between(gap.interval, signed)})"
            axes.text(1.02, y_text, text, transform=axes.get_yaxis_transform(), va="center")
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(y + 0.5, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(
            f"← {against.reference} better{GULF}macro AUROC, {against.candidate} minus "
            f"{against.reference}{GULF}{against.candidate} better →"
        )
        svg = markup(figure, "forest")
    told = "; ".join(f"{site} {signed(gap.difference)}" for site, gap in rows)
    return Figure(
        svg=svg,
        alt=f"Forest plot of the macro AUROC difference per site: {told}; mean of sites "
        f"{signed(mean)}, 95 % interval {between((left, right), signed)}.",
        caption="Lines are 95 % intervals of the paired difference. Filled: the whole interval "
        "lies on one side of zero. Hollow: within noise. Diamond: mean of sites and its interval.",
    )


def _whisker(axes: Any, y: float, gap: Gap) -> None:
    """One row of the forest plot, filled where the interval leaves zero out."""
    low, high = gap.interval
    hue = WORSE if high < 0 else BETTER if low > 0 else SOFT
    axes.plot([low, high], [y, y], color=hue, linewidth=2.0, solid_capstyle="butt")
    axes.plot(
        gap.difference, y, marker="s", markersize=7, color=hue, linewidth=0,
        markerfacecolor=hue if high < 0 or low > 0 else "none", markeredgewidth=1.6,
    )  # fmt: skip


def finding_plot(report: Report) -> Figure | None:
    """AUROC of every finding under every arm, one panel per site."""
    sites = by_gain(report)
    findings = shown_findings(report)
    results = [result for arm in report.arms.values() for result in arm.sites.values()]
    if all(m.auroc is None for result in results for m in result.findings.values()):
        return None
    columns = min(4, len(sites))
    lines = -(-len(sites) // columns)
    arms = ranked_arms(report)
    slots = len(arms) + bool(report.thumbnail_baseline)
    shifts = [0.8 * (i - (slots - 1) / 2) / max(2, slots) for i in range(slots)]
    with canvas(WIDTH, lines * (0.55 + 0.36 * len(findings)) + 0.7) as figure:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(sites) :]:
            axes.set_visible(False)
        for axes, site in zip(grid.flat, sites, strict=False):
            axes.set_title(short(site, 20))
            axes.axvline(0.5, color=SOFT, linewidth=0.8, linestyle=(0, (3, 3)))
            drawn = [
                _dots(axes, arm, site, findings, arm_style(name, report), shifts[i])
                for i, (name, arm) in enumerate(arms.items())
            ]
            _thumbnails(axes, report, site, findings, shifts[-1])
            for y in range(len(findings)):
                if not any(y in rows for rows in drawn):
                    axes.text(0.52, y, "n/a", color=SOFT, va="center", fontsize=8)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        first = grid[0, 0]
        first.set_yticks(range(len(findings)), [short(name.replace("_", " "), 28) for name in findings])
        first.set_ylim(len(findings) - 0.4, -0.6)
        first.set_xlim(min(0.45, first.get_xlim()[0]), 1.01)
        figure.supxlabel("AUROC", fontsize=9)
        keys = arm_keys(report)
        beside = _columns([key.get_label() for key in keys])
        figure.legend(handles=keys, loc="outside upper left", ncols=beside)
        svg = markup(figure, "findings")
    return Figure(
        svg=svg,
        alt=f"AUROC of {len(findings)} findings at {len(sites)} sites under the arms "
        f"{', '.join(arms)}. The same numbers stand in the tables per site.",
        caption="Lines are 95 % patient-bootstrap intervals; the dashed line at 0.5 is chance; "
        "n/a: not annotated, of a single class, or too few studies to tell.",
    )


def _dots(
    axes: Any, arm: Arm, site: str, findings: Sequence[str], style: tuple[str, str], shift: float
) -> set[int]:
    """Draw one arm in one panel; return the rows that have a value."""
    rows = set()
    results = arm.sites[site].findings if site in arm.sites else {}
    hue, marker = style
    for y, finding in enumerate(findings):
        result = results.get(finding)
        if result is None or result.auroc is None:
            continue
        rows.add(y)
        if result.interval:
            axes.plot(result.interval, [y + shift] * 2, color=hue, linewidth=1.3)
        axes.plot(result.auroc, y + shift, marker=marker, color=hue, markersize=5)
    return rows


def _thumbnails(axes: Any, report: Report, site: str, findings: Sequence[str], shift: float) -> None:
    baseline = (report.thumbnail_baseline or {}).get(site, {})
    for y, finding in enumerate(findings):
        result = baseline.get(finding)
        if result is not None and result.auroc is not None:
            axes.plot(result.auroc, y + shift, marker="x", color=SOFT, markersize=5, markeredgewidth=1.2)


def ranked_arms(report: Report) -> dict[str, Arm]:
    """Return the arms that rank studies in ways of their own: scaled probabilities rank as before."""
    return {name: arm for name, arm in report.arms.items() if name not in SAME_RANKING}


def arm_style(name: str, report: Report) -> tuple[str, str]:
    """Colour and marker of an arm: the same in every report for the arms every report knows."""
    others = [arm for arm in ranked_arms(report) if arm not in ARM_ORDER]
    i = ARM_ORDER.index(name) if name in ARM_ORDER else len(ARM_ORDER) + others.index(name)
    return ARMS[i % len(ARMS)], ARM_MARKERS[i % len(ARM_MARKERS)]


def short(name: str, most: int) -> str:
    """Cut a name that is longer than ``most`` characters.

    >>> short("a very long name", 7)
    'a very…'
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _columns(labels: Sequence[str]) -> int:
    """How many legend entries fit beside each other."""
    return max(1, min(len(labels), 120 // (8 + max(map(len, labels), default=0))))


def arm_keys(report: Report, thumbnail: bool = True) -> list[Any]:
    """Return the legend's entries: the arms, and the thumbnail where it was run and is shown."""
    from matplotlib.lines import Line2D

    keys = []
    for name in ranked_arms(report):
        hue, marker = arm_style(name, report)
        keys.append(Line2D([], [], color=hue, marker=marker, markersize=5, label=name))
    if report.thumbnail_baseline and thumbnail:
        keys.append(Line2D([], [], color=SOFT, marker="x", linewidth=0, markersize=5, label="thumbnail"))
    return keys


def training_curves(report: Report) -> Figure | None:
    """Validation AUROC and training loss of each site over the rounds."""
    sites = list(dict.fromkeys(site for part in report.rounds for site in part.cohort))
    if not any(part.loss or part.validation_auroc for part in report.rounds):
        return None
    with canvas(WIDTH, 3.5) as figure:
        left, right = figure.subplots(1, 2)
        _curves(left, report.rounds, sites, lambda part, site: part.validation_auroc.get(site))
        _curves(right, report.rounds, sites, lambda part, site: part.loss.get(site))
        left.set_title("Validation macro AUROC")
        right.set_title("Training loss")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=_columns(labels))
        svg = markup(figure, "curves")
    return Figure(
        svg=svg,
        alt=f"Validation AUROC and training loss over {len(report.rounds)} rounds at {', '.join(sites)}.",
        caption="A gap in a line: the site sent nothing that round. A shaded round was abandoned.",
    )


def _curves(
    axes: Any,
    rounds: Sequence[RoundPart],
    sites: Sequence[str],
    value: Callable[[RoundPart, str], float | None],
) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [part.round for part in rounds]
    shade_abandoned(axes, rounds)
    for i, site in enumerate(sites):
        found = [value(part, site) for part in rounds]
        axes.plot(
            numbers, [float("nan") if number is None else number for number in found],
            color=SERIES[i % len(SERIES)], marker=SITE_MARKERS[i % len(SITE_MARKERS)],
            linestyle="-" if i < len(SERIES) else "--", linewidth=1.5, markersize=4,
            markevery=-(-len(rounds) // 20), label=short(site, 24),
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round")


def shade_abandoned(axes: Any, rounds: Sequence[RoundPart]) -> None:
    """Shade the rounds that ended without a mean."""
    for part in rounds:
        if part.status == "abandoned":
            axes.axvspan(part.round - 0.5, part.round + 0.5, color=GRID, alpha=0.6, linewidth=0)


def lora_error_curve(report: Report) -> Figure | None:
    """Relative aggregation error of the LoRA factors over the rounds."""
    from matplotlib.ticker import MaxNLocator

    known = [(part.round, part.lora_error) for part in report.rounds if part.lora_error is not None]
    if not known:
        return None
    numbers, errors = [number for number, _ in known], [error for _, error in known]
    with canvas(WIDTH, 2.3) as figure:
        axes = figure.add_subplot()
        every = -(-len(numbers) // 40)
        axes.plot(numbers, errors, color=SERIES[0], marker="o", markersize=4, markevery=every, linewidth=1.5)
        axes.set_ylim(0.0, 1.12 * max(errors) or 1.0)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        svg = markup(figure, "lora")
    return Figure(
        svg=svg,
        alt=f"Relative LoRA aggregation error, {errors[0]:.3g} in round {numbers[0]}, "
        f"{errors[-1]:.3g} in round {numbers[-1]}.",
        caption="‖M − BA‖ / ‖M‖: how far the product of the averaged factors is from the average "
        "of the sites' products. 0 is exact.",
    )
