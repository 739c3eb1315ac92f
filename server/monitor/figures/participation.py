"""Who took part in which round."""

from __future__ import annotations

from collections.abc import Sequence

from server.facts.records import SiteRow
from server.monitor.figures.style import Figure, figure, names_axis, round_axis
from server.monitor.figures.text import plain
from server.report_words import counted, listed

STATES = {
    "returned": ("var:series-0", ""),
    "missing": ("var:series-4", "○"),
    "rejected": ("var:worse", "×"),
    "asked": ("var:series-5", "…"),
    "not asked": ("var:grid", ""),
}
"""State -> its colour, and the mark it has beside the colour."""
MARKED = 60
"""Up to so many rounds the marks are drawn."""
CAPTION = "Filled: the update is in the mean. ○ no answer before the deadline. × refused. … still asked. Pale: not asked."


def draw(rows: Sequence[SiteRow]) -> Figure | None:
    """Draw sites x rounds; None before the first round."""
    rounds = max((len(row.participation) for row in rows), default=0)
    if not rounds:
        return None
    order = list(STATES)
    table = [[order.index(state) if state in STATES else None for state in row.participation] for row in rows]
    ends = [(i / len(order), (i + 1) / len(order), colour) for i, (colour, _) in enumerate(STATES.values())]
    heat = {
        "type": "heatmap",
        "x": list(range(1, rounds + 1)),
        "y": list(range(len(rows))),
        "z": table,
        "zmin": -0.5,
        "zmax": len(order) - 0.5,
        "showscale": False,
        "colorscale": [stop for low, high, colour in ends for stop in ([low, colour], [high, colour])],
        "xgap": 2 if rounds <= MARKED else 0,
        "ygap": 2 if len(rows) <= 24 else 1,
        "hovertext": [
            [f"{plain(row.name)}, round {i + 1}: {state}" for i, state in enumerate(row.participation)]
            for row in rows
        ],
        "hoverinfo": "text",
    }
    if rounds <= MARKED:
        heat["text"] = [[STATES.get(state, ("", ""))[1] for state in row.participation] for row in rows]
        heat["texttemplate"] = "%{text}"
    layout = {
        "xaxis": round_axis([1, rounds], showgrid=False),
        "yaxis": names_axis([row.name for row in rows], range=[len(rows) - 0.5, -0.5]),
        "height": 110 + max(len(rows), 4) * (28 if len(rows) <= 24 else 14),
    }
    return figure([heat], layout, _told(rows, rounds), CAPTION, "participation")


def _told(rows: Sequence[SiteRow], rounds: int) -> str:
    every = sum(all(state == "returned" for state in row.participation) for row in rows)
    gaps = [
        f"{row.name} ({', '.join(f'{n} {state}' for state in ('missing', 'rejected') if (n := row.participation.count(state)))})"
        for row in rows
        if {"missing", "rejected"} & {*row.participation}
    ]
    told = f"{counted(rounds, 'round')}, {counted(len(rows), 'site')}; {every} took part in every round"
    return f"{told}; not in every mean: {listed(gaps)}." if gaps else f"{told}."
