"""How far each part of the adapter has moved from where the run began."""

from __future__ import annotations

from server.facts.records import Aggregation
from server.figure_words import DRIFT_CAPTION, drift_told
from server.monitor.figures.style import Figure, colourbar, figure, grid_of, known, names_axis, round_axis


def draw(aggregation: Aggregation) -> Figure | None:
    """Draw parts x rounds, the part nearest the input at the bottom; None where nothing is known."""
    blocks, rounds = aggregation.drift_blocks, aggregation.drift_rounds
    values = known(value for row in aggregation.drift for value in row)
    if not values:
        return None
    table = grid_of([row[i] for row in aggregation.drift] for i in range(len(blocks)))
    heat = {
        "type": "heatmap",
        "x": list(rounds),
        "y": list(range(len(blocks))),
        "z": table,
        "colorscale": "scale:seq",
        "zmin": 0,
        "zmax": max(values) or 1.0,
        "colorbar": colourbar("L2 distance"),
        "xgap": 1 if len(rounds) <= 60 else 0,
        "ygap": 1,
        "hovertemplate": "%{y}<br>round %{x}: <b>%{z:.3~g}</b><extra></extra>",
    }
    layout = {
        "xaxis": round_axis(rounds, showgrid=False),
        "yaxis": names_axis(blocks, most=28),
        "height": 110 + max(len(blocks), 4) * (24 if len(blocks) <= 20 else 14),
    }
    return figure([heat], layout, drift_told(aggregation), DRIFT_CAPTION, "drift")
