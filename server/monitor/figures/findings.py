"""One figure of merit over the rounds, finding by finding: at one site, or as the mean over the sites."""

from __future__ import annotations

from collections.abc import Mapping

from server.facts.records import Curve
from server.figure_words import figures_of, finding_words, metric_words
from server.monitor.figures.style import (
    DASHES,
    MARKERS,
    SERIES,
    Figure,
    axis,
    figure,
    legend,
    newest,
    round_axis,
    rounded,
)
from server.monitor.figures.text import plain

CAPTION = "One line for each finding. A line with gaps: in some rounds too few studies, or nothing was sent."


def draw(curves: Mapping[str, Curve], site: str = "") -> Figure | None:
    """Draw finding -> curve, at ``site`` or as the mean over the sites; None without a value."""
    lines = {
        finding: rounded(curve.sites.get(site, ()) if site else curve.mean)
        for finding, curve in curves.items()
    }
    lines = {finding: values for finding, values in lines.items() if newest(values) is not None}
    if not lines:
        return None
    metric = next(iter(curves.values())).metric
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(finding_words(finding), 28),
            "x": list(curves[finding].rounds),
            "y": values,
            "line": {"color": SERIES[i % 8], "width": 2, "dash": DASHES[(i + i // 8) % 8]},
            "marker": {
                "symbol": MARKERS[(i + i // 8) % 8],
                "size": 7,
                "color": SERIES[i % 8],
                "maxdisplayed": 12,
            },
            "hovertemplate": "%{fullData.name} %{y}<extra></extra>",
        }
        for i, (finding, values) in enumerate(lines.items())
    ]
    rounds = [number for finding in lines for number in curves[finding].rounds]
    layout = {
        "xaxis": round_axis(rounds, from_start=True),
        "yaxis": axis(metric_words(metric)),
        "showlegend": True,
        "legend": legend(),
        "hovermode": "x unified",
        "height": 440,
    }
    where = f"at {site}" if site else "mean over the sites"
    ends = []
    for finding, values in lines.items():
        found = newest(values)
        if found is not None:
            number = curves[finding].rounds[found[0]]
            ends.append(f"{finding_words(finding)} {figures_of(found[1])} after round {number}")
    told = f"{metric_words(metric)}, {where}: {'; '.join(ends)}."
    return figure(traces, layout, told, CAPTION, f"findings {metric} {site}")
