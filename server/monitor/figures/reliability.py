"""Whether probabilities mean what they say: before calibration, and after."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from server.facts.records import Bin, Reliability
from server.figure_words import RELIABILITY_CAPTION, arm_words, reliability_told, shown_arms
from server.monitor.figures.style import Figure, axis, figure, rounded
from server.monitor.figures.text import plain
from server.report_words import number

LOOKS = {"federated": ("var:arm-1", "circle"), "calibrated": ("var:arm-2", "diamond")}
OTHERS = (("var:arm-0", "square"), ("var:arm-3", "triangle-up"))


def draw(reliability: Reliability) -> Figure | None:
    """Draw one panel per model; None where no model has a bin."""
    arms = shown_arms(reliability)
    if not arms:
        return None
    top = _top([part for arm in arms for part in reliability.arms[arm]])
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "height": 400,
        "margin": {"l": 12, "r": 12, "t": 56, "b": 12},
        "shapes": [],
        "annotations": [],
    }
    width = 1.0 / len(arms)
    for i, arm in enumerate(arms):
        mark = "" if i == 0 else str(i + 1)
        gap = 0.04 if len(arms) > 1 else 0.0
        domain = [i * width + gap * (i > 0), (i + 1) * width - gap * (i < len(arms) - 1)]
        layout[f"xaxis{mark}"] = axis(
            "mean predicted probability",
            range=[-0.02, top],
            domain=domain,
            anchor=f"y{mark}",
            constrain="domain",
        )
        layout[f"yaxis{mark}"] = axis(
            "share with the finding" if i == 0 else "",
            range=[-0.02, top],
            anchor=f"x{mark}",
            scaleanchor=f"x{mark}",
            constrain="domain",
        )
        layout["shapes"].append(_diagonal(mark, top))
        layout["annotations"].append(_title(reliability, arm, mark))
        look = LOOKS.get(arm) or OTHERS[i]
        traces.append(_points(reliability, arm, look, mark))
    about = f"reliability {reliability.finding} {reliability.site}"
    return figure(traces, layout, reliability_told(reliability), RELIABILITY_CAPTION, about)


def _top(bins: Sequence[Bin]) -> float:
    """End both axes above the largest number, so that rare findings are not crowded in a corner.

    >>> _top([Bin(0.07, 100, 9, 0.09, (0.05, 0.16))])
    0.22
    """
    largest = max(max(part.mean, part.share, part.interval[1]) for part in bins)
    for top in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        if largest <= top:
            return top + 0.02
    return 1.02


def _points(reliability: Reliability, arm: str, look: tuple[str, str], mark: str) -> dict[str, Any]:
    bins = reliability.arms[arm]
    most = max(part.studies for part in bins)
    colour, symbol = look
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "xaxis": f"x{mark}",
        "yaxis": f"y{mark}",
        "name": plain(arm_words(arm)),
        "x": rounded(part.mean for part in bins),
        "y": rounded(part.share for part in bins),
        "error_y": {
            "type": "data",
            "symmetric": False,
            "color": colour,
            "thickness": 1.4,
            "width": 4,
            "array": rounded(part.interval[1] - part.share for part in bins),
            "arrayminus": rounded(part.share - part.interval[0] for part in bins),
        },
        "line": {"color": colour, "width": 1.2},
        "marker": {
            "symbol": symbol,
            "color": colour,
            "opacity": 1,
            "size": rounded(7 + 15 * sqrt(part.studies / most) for part in bins),
            "line": {"color": "var:page", "width": 1},
        },
        "customdata": [[part.studies, part.positives, *rounded(part.interval)] for part in bins],
        "hovertemplate": "predicted %{x:.3f}<br>observed %{y:.3f}"
        " (%{customdata[2]:.3f} to %{customdata[3]:.3f})"
        "<br>%{customdata[1]} of %{customdata[0]} studies<extra></extra>",
    }


def _title(reliability: Reliability, arm: str, mark: str) -> dict[str, Any]:
    """Say above its panel which model it is, and its ECE."""
    error, words = reliability.ece.get(arm), arm_words(arm)
    name = plain(words if words == arm else f"{words} ({arm} model)")
    return {
        "text": f"<b>{name}</b><br>ECE {'n/a' if error is None else number(error)}",
        "x": 0,
        "y": 1,
        "xref": f"x{mark} domain",
        "yref": f"y{mark} domain",
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "yshift": 6,
        "showarrow": False,
    }


def _diagonal(mark: str, top: float) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": f"x{mark}",
        "yref": f"y{mark}",
        "x0": 0,
        "y0": 0,
        "x1": top,
        "y1": top,
        "line": {"color": "var:soft", "width": 1.2, "dash": "dash"},
        "layer": "below",
    }
