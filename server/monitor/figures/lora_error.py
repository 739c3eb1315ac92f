"""The LoRA error meter: what averaging the factors apart costs, now and over the rounds."""

from __future__ import annotations

from server.facts.records import Aggregation
from server.figure_words import LORA_CAPTION, lora_told, percent
from server.monitor.figures.style import Figure, axis, figure, round_axis, rounded

DECADES = 30.0
"""Largest over smallest value from which the axis is logarithmic."""


def draw(aggregation: Aggregation) -> Figure | None:
    """Draw the newest error as a number and all of them as a line; None where the run has none."""
    errors = aggregation.lora_error
    if not errors:
        return None
    numbers = [number for number, _ in errors]
    values = rounded(error for _, error in errors)
    above = [error for _, error in errors if error > 0]
    spans = len(above) == len(errors) and max(above) / min(above) >= DECADES
    line = {
        "type": "scatter",
        "mode": "lines+markers" if len(errors) <= 60 else "lines",
        "x": numbers,
        "y": values,
        "line": {"color": "var:series-0", "width": 2},
        "marker": {"size": 6},
        "hovertemplate": "round %{x}: <b>%{y:.3~g}</b><extra></extra>",
    }
    last, now = errors[-1]
    scale = {"type": "log", "exponentformat": "power", "dtick": 1} if spans else {"rangemode": "tozero"}
    layout = {
        "xaxis": round_axis(numbers, domain=[0.27, 1]),
        "yaxis": axis("relative error" + (" (log)" if spans else ""), **scale),
        "annotations": [
            {
                "text": f"<b>{percent(now) if now else '0'}</b>",
                "font": {"size": 38},
                "x": 0.1,
                "y": 0.62,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "middle",
                "showarrow": False,
            },
            {
                "text": f"{'exact' if not now else 'of the mean update'},<br>round {last}",
                "font": {"size": 13, "color": "var:soft"},
                "x": 0.1,
                "y": 0.36,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "middle",
                "showarrow": False,
            },
        ],
        "height": 260,
    }
    return figure([line], layout, lora_told(errors), LORA_CAPTION, "lora-error")
