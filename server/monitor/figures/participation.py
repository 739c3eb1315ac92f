"""Who took part in which round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def draw(sites: Mapping[str, Sequence[str]]) -> Figure | None:
    """Draw sites x rounds of site -> what it did in each round; None before the first round."""
    rounds = max(map(len, sites.values()), default=0)
    if not rounds:
        return None
    order = {state: i for i, state in enumerate(STATES)}
    seen = {state for did in sites.values() for state in did}
    share = 1 / len(order)
    # Most cells are in the mean; of very many, those say no more than their colour.
    usual = "returned" if rounds * len(sites) > WORDED else None
    heat = {
        "type": "heatmap",
        "x": list(range(1, rounds + 1)),
        "y": list(range(len(sites))),
        "z": [[order.get(state) for state in did] for did in sites.values()],
        "zmin": -0.5,
        "zmax": len(order) - 0.5,
        "showscale": False,
        "colorscale": [
            stop
            for i, (colour, _, _) in enumerate(STATES.values())
            for stop in ([i * share, colour], [(i + 1) * share, colour])
        ],
        "xgap": 2 if rounds <= MARKED else 0,
        "ygap": 2 if len(sites) <= 24 else 1,
        "hovertext": [
            ["" if state == usual else f": {_words(state)}" for state in did] for did in sites.values()
        ],
        "hovertemplate": "%{y}, round %{x}%{hovertext}<extra></extra>",
    }
    if rounds <= MARKED:
        marks = {state: mark for state, (_, mark, _) in STATES.items()}
        heat["text"] = [[marks.get(state, "") for state in did] for did in sites.values()]
        heat["texttemplate"] = "%{text}"
    layout = {
        "xaxis": round_axis([1, rounds], showgrid=False, range=[0.5, rounds + 0.5]),
        "yaxis": names_axis([*sites], range=[len(sites) - 0.5, -0.5]),
        "showlegend": True,
        "legend": legend(itemclick=False, itemdoubleclick=False),
        "height": 140 + max(len(sites), 4) * (28 if len(sites) <= 24 else 14),
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
    return figure([heat, *keys], layout, _told(sites, rounds), CAPTION, "participation")


def _words(state: str) -> str:
    return STATES[state][2] if state in STATES else state


def _told(sites: Mapping[str, Sequence[str]], rounds: int) -> str:
    every = sum(all(state == "returned" for state in did) for did in sites.values())
    gaps = []
    for name, did in sites.items():
        counts = [(did.count(state), state) for state in ("missing", "rejected")]
        if any(n for n, _ in counts):
            gaps.append(f"{name} ({', '.join(f'{n} {state}' for n, state in counts if n)})")
    told = f"{counted(rounds, 'round')}, {counted(len(sites), 'site')}; {every} took part in every round"
    return f"{told}; not in every mean: {listed(gaps)}." if gaps else f"{told}."
