"""The report's reliability diagrams: do probabilities mean what they say, before calibration and after."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from server.facts.records import Bin, Reliability
from server.figure_words import RELIABILITY_CAPTION, arm_words, reliability_told, shown_arms
from server.report_figures import WIDTH, Figure, short
from server.report_svg import ARMS, SOFT, canvas, markup
from server.report_words import number

_LOOKS = {"federated": (ARMS[1], "o"), "calibrated": (ARMS[2], "D")}
_PANELS = 4


def reliability_plot(findings: Sequence[Reliability]) -> Figure | None:
    """One panel per finding, both models in each; None where no site told of bins."""
    if not findings:
        return None
    columns = min(_PANELS, len(findings))
    lines = -(-len(findings) // columns)
    shown = [arm for arm in _LOOKS if any(arm in shown_arms(one) for one in findings)]
    with canvas(WIDTH, 0.8 + 2.75 * lines * (1 if columns > 2 else 1.3)) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(findings) :]:
            axes.set_visible(False)
        for axes, one in zip(grid.flat, findings, strict=False):
            _panel(axes, one)
        figure.supxlabel("mean predicted probability", fontsize=9)
        figure.supylabel("share with the finding", fontsize=9)
        figure.legend(handles=_keys(shown), loc="outside upper left", ncols=len(shown) + 1)
        svg = markup(figure, "reliability")
    told = " ".join(reliability_told(one) for one in findings)
    return Figure(svg=svg, alt=told, caption=RELIABILITY_CAPTION)


def _panel(axes: Any, one: Reliability) -> None:
    arms = [arm for arm in shown_arms(one) if arm in _LOOKS]
    top = _top([part for arm in arms for part in one.arms[arm]])
    axes.plot([0, top], [0, top], color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
    errors = []
    for arm in arms:
        bins = one.arms[arm]
        hue, marker = _LOOKS[arm]
        most = max(part.studies for part in bins)
        axes.plot(
            [part.mean for part in bins], [part.share for part in bins], color=hue, linewidth=0.6, alpha=0.5
        )
        reach = [end for part in bins for end in (*part.interval, float("nan"))]
        axes.plot([mean for part in bins for mean in [part.mean] * 3], reach, color=hue, linewidth=1.1)
        for part in bins:
            axes.plot(
                part.mean, part.share, marker=marker, color=hue, clip_on=False, zorder=3,
                markersize=round(3 + 5 * sqrt(part.studies / most)),
            )  # fmt: skip
        error = one.ece.get(arm)
        errors.append(f"{'n/a' if error is None else number(error)} {arm_words(arm).split()[0]}")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_aspect("equal")
    axes.locator_params(nbins=4)
    axes.set_title(short(one.finding.replace("_", " "), 24))
    axes.set_xlabel(f"ECE {', '.join(errors)}", fontsize=8.5)


def _top(bins: Sequence[Bin]) -> float:
    """End both axes at the first round number above all points and intervals.

    >>> _top([Bin(0.07, 100, 9, 0.09, (0.05, 0.16))])
    0.2
    """
    largest = max(max(part.mean, part.share, part.interval[1]) for part in bins)
    return next((top for top in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if largest <= top), 1.0)


def _keys(arms: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    keys = [
        Line2D(
            [],
            [],
            color=hue,
            marker=marker,
            linewidth=0.9,
            markersize=6,
            label=f"{arm_words(arm)} ({arm} model)",
        )
        for arm in arms
        for hue, marker in (_LOOKS[arm],)
    ]
    return [*keys, Line2D([], [], color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)), label="as it should be")]
