"""Who took part in which round."""

from __future__ import annotations

from collections.abc import Sequence

from server.facts.records import SiteRow
from server.monitor.figures.style import Figure, figure, legend, names_axis, round_axis
from server.report_words import counted, listed

STATES = {
    "returned": ("var:series-0", "", "in the mean"),
    "missing": ("var:series-4", "○", "no answer in time"),
    "rejected": ("var:worse", "×", "refused"),
    "asked": ("var:series-5", "…", "still asked"),
    "not asked": ("var:grid", "", "not asked"),
}
"""State -> its colour, the mark it has beside the colour, and what it is called."""
MARKED = 60
"""Up to so many rounds the marks are drawn."""
WORDED = 4000
"""Up to so many cells each says in words what it was."""
CAPTION = "Every site in every round; point at a cell for what it was."


def draw(rows: Sequence[SiteRow]) -> Figure | None:
    """Draw sites x rounds; None before the first round."""
    rounds = max((len(row.participation) for row in rows), default=0)
    if not rounds:
        return None
    order = {state: i for i, state in enumerate(STATES)}
    seen = {state for row in rows for state in row.participation}
    share = 1 / len(order)
    # Most cells are in the mean; of very many, those say no more than their colour.
    usual = "returned" if rounds * len(rows) > WORDED else None
    heat = {
        "type": "heatmap",
        "x": list(range(1, rounds + 1)),
        "y": list(range(len(rows))),
        "z": [[order.get(state) for state in row.participation] for row in rows],
        "zmin": -0.5,
        "zmax": len(order) - 0.5,
        "showscale": False,
        "colorscale": [
            stop
            for i, (colour, _, _) in enumerate(STATES.values())
            for stop in ([i * share, colour], [(i + 1) * share, colour])
        ],
        "xgap": 2 if rounds <= MARKED else 0,
        "ygap": 2 if len(rows) <= 24 else 1,
        "hovertext": [
            ["" if state == usual else f": {_words(state)}" for state in row.participation] for row in rows
        ],
        "hovertemplate": "%{y}, round %{x}%{hovertext}<extra></extra>",
    }
    if rounds <= MARKED:
        marks = {state: mark for state, (_, mark, _) in STATES.items()}
        heat["text"] = [[marks.get(state, "") for state in row.participation] for row in rows]
        heat["texttemplate"] = "%{text}"
    layout = {
        "xaxis": round_axis([1, rounds], showgrid=False, range=[0.5, rounds + 0.5]),
        "yaxis": names_axis([row.name for row in rows], range=[len(rows) - 0.5, -0.5]),
        "showlegend": True,
        "legend": legend(itemclick=False, itemdoubleclick=False),
        "height": 140 + max(len(rows), 4) * (28 if len(rows) <= 24 else 14),
    }
    keys = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [None],
            "y": [None],
            "name": f"{words} {mark}".rstrip(),
            "marker": {"symbol": "square", "size": 13, "color": colour},
        }
        for state, (colour, mark, words) in STATES.items()
        if state in seen
    ]
    return figure([heat, *keys], layout, _told(rows, rounds), CAPTION, "participation")


def _words(state: str) -> str:
    return STATES[state][2] if state in STATES else state


def _told(rows: Sequence[SiteRow], rounds: int) -> str:
    every = sum(all(state == "returned" for state in row.participation) for row in rows)
    gaps = []
    for row in rows:
        counts = [(row.participation.count(state), state) for state in ("missing", "rejected")]
        if any(n for n, _ in counts):
            gaps.append(f"{row.name} ({', '.join(f'{n} {state}' for n, state in counts if n)})")
    told = f"{counted(rounds, 'round')}, {counted(len(rows), 'site')}; {every} took part in every round"
    return f"{told}; not in every mean: {listed(gaps)}." if gaps else f"{told}."
