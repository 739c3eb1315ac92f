"""The LoRA error meter: what averaging the factors apart costs, now and over the rounds."""

from __future__ import annotations

from server.facts.records import Aggregation
from server.figure_words import LORA_CAPTION, lora_told, percent
from server.monitor.figures.style import Figure, axis, figure, round_axis, rounded

DECADES = 30.0
"""Largest over smallest value from which the axis is logarithmic."""
ROUNDING = 1e-6
"""Below this an error is that of 32-bit numbers."""


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
    exact = "exact" if not now else "exact but for rounding" if now < ROUNDING else "of the mean update"
    what = f"{exact}, round {last}"
    scale = (
        {"type": "log", "exponentformat": "power", "dtick": 1}
        if spans
        else {"rangemode": "tozero", "exponentformat": "power"}
    )
    layout = {
        "xaxis": round_axis(numbers),
        "yaxis": axis("relative error" + (" (log)" if spans else ""), **scale),
        "annotations": [
            {
                "text": f"<b>{percent(now) if now else '0'}</b><span style='font-size:0.4em'>  {what}</span>",
                "font": {"size": 34},
                "x": 0,
                "y": 1,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "yshift": 8,
                "showarrow": False,
            }
        ],
        "margin": {"l": 12, "r": 12, "t": 70, "b": 12},
        "height": 300,
    }
    return figure([line], layout, lora_told(errors), LORA_CAPTION, "lora-error")
