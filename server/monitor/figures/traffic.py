"""What each round moved over the network, up from the sites and down to them."""

from __future__ import annotations

from collections.abc import Mapping

from server.monitor.figures.style import Figure, axis, figure, legend, round_axis
from server.report_words import size

CAPTION = "Bytes of all sites together, framing included: updates up, the adapter down."
_LOOKS = {"up": ("from the sites", "var:series-0", ""), "down": ("to the sites", "var:series-4", "/")}


def draw(moved: Mapping[str, Mapping[int, float]]) -> Figure | None:
    """Draw ``up`` and ``down`` -> round -> bytes; None where nothing was moved."""
    rounds = sorted({number for points in moved.values() for number in points})
    if not rounds:
        return None
    bars = [
        {
            "type": "bar",
            "name": words,
            "x": rounds,
            "y": [moved.get(way, {}).get(number) for number in rounds],
            "marker": {"color": colour, "pattern": {"shape": pattern, "solidity": 0.25}},
            "hovertemplate": f"round %{{x}}: <b>%{{y:.3s}}B</b> {words}<extra></extra>",
        }
        for way, (words, colour, pattern) in _LOOKS.items()
        if moved.get(way)
    ]
    layout = {
        "xaxis": round_axis(rounds),
        "yaxis": axis("bytes", tickformat="~s", ticksuffix="B", rangemode="tozero"),
        "barmode": "group",
        "bargap": 0.25 if len(rounds) <= 40 else 0.0,
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
    return figure(bars, layout, f"Bytes by round: {'; '.join(told)}.", CAPTION, "traffic")
