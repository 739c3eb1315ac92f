"""One figure of merit over the rounds, finding by finding: at one site, or as the mean over the sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
MANY = 60
"""Above so many rounds the lines are thinner."""

Points = Sequence[tuple[int, float]]


def draw(metric: str, lines: Mapping[str, Points], site: str = "") -> Figure | None:
    """Draw finding -> (round, value), at ``site`` or as the mean over the sites; None without a value."""
    lines = {finding: points for finding, points in lines.items() if points}
    rounds = sorted({number for points in lines.values() for number, _ in points})
    if not rounds:
        return None
    traces, ends = [], []
    for i, (finding, points) in enumerate(lines.items()):
        told = dict(points)
        values = rounded(told.get(number) for number in rounds)
        found = newest(values)
        if found is None:
            continue
        ends.append(f"{finding_words(finding)} {figures_of(found[1])} after round {rounds[found[0]]}")
        look = (i + i // 8) % 8  # the ninth has the first's colour with another dash and marker
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(finding_words(finding), 28),
                "x": rounds,
                "y": values,
                "line": {
                    "color": SERIES[i % 8],
                    "width": 2 if len(rounds) <= MANY else 1.3,
                    "dash": DASHES[look],
                },
                "marker": {"symbol": MARKERS[look], "size": 7, "color": SERIES[i % 8], "maxdisplayed": 12},
                "hovertemplate": "%{fullData.name} %{y}<extra></extra>",
            }
        )
    if not traces:
        return None
    layout = {
        "xaxis": round_axis(rounds, from_start=True),
        "yaxis": axis(metric_words(metric)),
        "showlegend": True,
        "legend": legend(),
        "hovermode": "x unified",
        "height": 440,
    }
    where = f"at {site}" if site else "mean over the sites"
    alt = f"{metric_words(metric)}, {where}: {'; '.join(ends)}."
    return figure(traces, layout, alt, CAPTION, f"findings {metric} {site}")
