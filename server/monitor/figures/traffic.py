"""What each round moved over the network, up from the sites and down to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.monitor.figures.style import Figure, axis, figure, legend, round_axis
from server.report_words import size

CAPTION = "Bytes of all sites together, framing included: updates up, the adapter down."
BARS = 40
"""Up to so many rounds each has bars; above, there are lines."""
_LOOKS = {
    "up": ("from the sites", "var:series-0", "", "solid"),
    "down": ("to the sites", "var:series-4", "/", "dash"),
}


def draw(moved: Mapping[str, Mapping[int, float]]) -> Figure | None:
    """Draw ``up`` and ``down`` -> round -> bytes; None where nothing was moved."""
    rounds = sorted({number for points in moved.values() for number in points})
    if not rounds:
        return None
    traces = [_trace(way, rounds, moved[way]) for way in _LOOKS if moved.get(way)]
    layout = {
        "xaxis": round_axis(rounds),
        "yaxis": axis("bytes", tickformat="~s", ticksuffix="B", rangemode="tozero"),
        "barmode": "group",
        "bargap": 0.25,
        "hovermode": "x unified" if len(rounds) > BARS else "closest",
        "showlegend": True,
        "legend": legend(),
        "height": 300,
    }
    last = rounds[-1]
    told = [
        f"{size(sum(points.values()))} {_LOOKS[way][0]} in all, {size(points.get(last, 0))} in round {last}"
        for way, points in moved.items()
        if points
    ]
    return figure(traces, layout, f"Bytes by round: {'; '.join(told)}.", CAPTION, "traffic")


def _trace(way: str, rounds: list[int], points: Mapping[int, float]) -> dict[str, Any]:
    words, colour, pattern, dash = _LOOKS[way]
    common = {"name": words, "x": rounds, "y": [points.get(number) for number in rounds]}
    if len(rounds) > BARS:
        line = {"color": colour, "width": 2, "dash": dash}
        return common | {
            "type": "scatter",
            "mode": "lines",
            "line": line,
            "hovertemplate": f"%{{y:.3s}}B {words}<extra></extra>",
        }
    return common | {
        "type": "bar",
        "marker": {"color": colour, "pattern": {"shape": pattern, "solidity": 0.25}},
        "hovertemplate": f"round %{{x}}: <b>%{{y:.3s}}B</b> {words}<extra></extra>",
    }
