"""Two runs in one curve."""

from __future__ import annotations

from collections.abc import Sequence

from server.facts.records import Curve
from server.figure_words import curve_told, metric_words
from server.monitor.figures.style import Figure, axis, figure, legend, newest, round_axis, rounded
from server.monitor.figures.text import plain

CAPTION = "Mean over the sites (bold) and the worst site (dashed) of both runs."
_LOOKS = (("var:series-0", "circle"), ("var:series-1", "square"))


def draw(runs: Sequence[tuple[str, Curve]]) -> Figure | None:
    """Draw the means of two (name, curve); None where neither has a value."""
    shown = [(name, curve) for name, curve in runs if newest(curve.mean) is not None]
    if not shown:
        return None
    traces = []
    for (name, curve), (colour, symbol) in zip(runs, _LOOKS, strict=True):
        if not curve.rounds:
            continue
        common = {"type": "scatter", "x": list(curve.rounds), "legendgroup": symbol}
        traces += [
            {
                **common,
                "mode": "lines+markers",
                "name": plain(name, 40),
                "y": rounded(curve.mean),
                "line": {"color": colour, "width": 3},
                "hovertemplate": "mean %{y}<extra>%{fullData.name}</extra>",
                "marker": {"symbol": symbol, "size": 8, "color": colour, "maxdisplayed": 12},
            },
            {
                **common,
                "mode": "lines",
                "name": f"{plain(name, 40)}, worst site",
                "y": rounded(curve.worst),
                "line": {"color": colour, "width": 1.5, "dash": "dash"},
                "customdata": [plain(site, 40) for site in curve.worst_site],
                "hovertemplate": "worst %{y}, %{customdata}<extra></extra>",
            },
        ]
    first = shown[0][1]
    layout = {
        "xaxis": round_axis([number for _, curve in shown for number in curve.rounds], from_start=True),
        "yaxis": axis(metric_words(first.metric, first.finding)),
        "showlegend": True,
        "legend": legend(),
        "height": 420,
    }
    told = " ".join(f"{name}: {curve_told(curve)}" for name, curve in shown)
    return figure(traces, layout, told, CAPTION, f"compare {first.metric} {first.finding}")
