"""How alike the sites' updates are: cosines of each pair as a heat map."""

from __future__ import annotations

from typing import Any

from server.facts.records import Aggregation
from server.figure_words import PAIRS_CAPTION, pairs_told
from server.monitor.figures.cells import cell_numbers
from server.monitor.figures.style import Figure, colourbar, figure, known, names_axis, rounded
from server.monitor.figures.text import plain

NUMBERED = 10


def draw(aggregation: Aggregation) -> Figure | None:
    """Draw the cosines in the order of the weights; None with fewer than two updates.

    A site's cosine with itself is 1 and says nothing, so the diagonal stays empty.
    """
    sites = list(aggregation.weights)
    if len(sites) < 2 or len(aggregation.pairs) != len(sites):
        return None
    table = [
        rounded((None if i == j else value for j, value in enumerate(row)), digits=3)
        for i, row in enumerate(aggregation.pairs)
    ]
    values = known(value for row in table for value in row)
    if not values:
        return None
    n, few = len(sites), len(sites) <= NUMBERED
    names = [plain(site, 40) for site in sites]
    reach = reach_of(values)
    heat = {
        "type": "heatmap",
        "x": list(range(n)),
        "y": list(range(n)),
        "z": table,
        "zmin": -reach,
        "zmax": reach,
        "colorscale": "scale:div",
        "colorbar": colourbar("cosine"),
        "xgap": 2 if few else 1,
        "ygap": 2 if few else 1,
        "hoverongaps": False,
        "hovertext": [[f"{a}<br>{b}" for b in names] for a in names],
        "hovertemplate": "%{hovertext}<br>cosine <b>%{z:.3f}</b><extra></extra>",
    }
    traces: list[dict[str, Any]] = [heat]
    if few:
        strength = [[abs(value or 0.0) / reach for value in row] for row in table]
        traces.append(cell_numbers(table, strength, "scale:div", 2, 12))
    layout = {
        "xaxis": names_axis(sites, range=[-0.5, n - 0.5], tickangle=0 if n <= 6 else -45),
        "yaxis": names_axis(sites, range=[n - 0.5, -0.5]),
        "height": 130 + n * (44 if few else 13) + (50 if n > 6 else 0),
    }
    return figure(traces, layout, pairs_told(aggregation), PAIRS_CAPTION, f"pairs {n}")


def reach_of(values: list[float]) -> float:
    """Return the end of the scale on both sides of 0: the largest cosine, but at least 0.2.

    >>> reach_of([0.05, -0.1]), reach_of([0.3, -0.45])
    (0.2, 0.45)
    """
    return round(max(0.2, *(abs(value) for value in values)), 3)
