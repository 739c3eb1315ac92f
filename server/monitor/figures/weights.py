"""How much each site counts in the mean, and how far it pulls the same way."""

from __future__ import annotations

from typing import Any

from server.facts.records import Aggregation
from server.figure_words import WEIGHTS_CAPTION, figures_of, weights_told
from server.monitor.figures.style import Figure, axis, figure, names_axis, rounded
from server.monitor.figures.text import plain
from server.report_words import number

FEW = 16
"""Up to so many sites the rows are high enough for their shares."""


def draw(aggregation: Aggregation) -> Figure | None:
    """Draw weights and cosines, the heaviest site first; None where no site was in the mean."""
    if not aggregation.weights:
        return None
    sites = sorted(aggregation.weights, key=lambda site: -aggregation.weights[site])
    cosines = [aggregation.cosines.get(site) for site in sites]
    with_cosines = any(cosine is not None for cosine in cosines)
    traces = [_bars(aggregation, sites)]
    few = len(sites) <= FEW
    top = 100 * max(aggregation.weights.values())
    layout: dict[str, Any] = {
        "xaxis": axis(
            "weight in the mean, %",
            domain=[0, 0.54 if with_cosines else 1],
            rangemode="tozero",
            range=[0, top * 1.04],
        ),
        "yaxis": names_axis(sites, range=[len(sites) - 0.5, -0.5], **_with_shares(aggregation, sites)),
        "shapes": [_equal_share(len(sites))],
        "height": 90 + max(len(sites), 3) * (34 if few else 17),
        "bargap": 0.35,
    }
    if with_cosines:
        traces += _dots(aggregation, sites, cosines)
        low = min(0.0, *(cosine for cosine in cosines if cosine is not None))
        layout["xaxis2"] = axis(
            "cosine with the aggregate",
            domain=[0.6, 1],
            range=[low - 0.06, 1.06],
            anchor="y",
            zeroline=True,
            zerolinecolor="var:soft",
            zerolinewidth=1,
        )
    return figure(traces, layout, weights_told(aggregation), WEIGHTS_CAPTION, "weights")


def _bars(aggregation: Aggregation, sites: list[str]) -> dict[str, Any]:
    shares = rounded(100 * aggregation.weights[site] for site in sites)
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(sites))),
        "x": shares,
        "marker": {"color": "var:series-0"},
        "hovertext": [_hover(aggregation, site) for site in sites],
        "hoverinfo": "text",
    }
    return trace


def _with_shares(aggregation: Aggregation, sites: list[str]) -> dict[str, Any]:
    """Put each share beside the site's name, where no bar and no line crosses it."""
    if len(sites) > FEW:
        return {}
    labels = [f"{plain(site, 22)}  <b>{100 * aggregation.weights[site]:.1f} %</b>" for site in sites]
    return {"ticktext": labels}


def _hover(aggregation: Aggregation, site: str) -> str:
    lines = [f"<b>{plain(site, 60)}</b>", f"weight {100 * aggregation.weights[site]:.2f} %"]
    norm, cosine = aggregation.norms.get(site), aggregation.cosines.get(site)
    if norm is not None:
        lines.append(f"norm of its update {figures_of(norm)}")
    if cosine is not None:
        lines.append(f"cosine with the aggregate {number(cosine)}")
    return "<br>".join(lines)


def _dots(aggregation: Aggregation, sites: list[str], cosines: list[float | None]) -> list[dict[str, Any]]:
    """One dot per site on a stem from zero; a hollow one pulls against the aggregate."""
    stems_x: list[float | None] = []
    stems_y: list[float | None] = []
    places = [(i, cosine) for i, cosine in enumerate(cosines) if cosine is not None]
    values = rounded(cosine for _, cosine in places)
    for (i, _), value in zip(places, values, strict=True):
        stems_x += [0, value, None]
        stems_y += [i, i, None]
    against = [value is not None and value < 0 for value in values]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "xaxis": "x2",
            "x": stems_x,
            "y": stems_y,
            "line": {"color": "var:line", "width": 2},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "xaxis": "x2",
            "x": values,
            "y": [i for i, _ in places],
            "marker": {
                "size": 11 if len(sites) <= FEW else 8,
                "symbol": ["diamond-open" if turned else "circle" for turned in against],
                "color": [_dot_colour(turned) for turned in against],
                "line": {"width": 2, "color": [_dot_colour(turned) for turned in against]},
            },
            "hovertext": [_hover(aggregation, sites[i]) for i, _ in places],
            "hoverinfo": "text",
        },
    ]


def _dot_colour(turned: bool) -> str:
    return "var:worse" if turned else "var:series-0"


def _equal_share(count: int) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": 100 / count,
        "x1": 100 / count,
        "y0": 0,
        "y1": 1,
        "line": {"color": "var:ink", "width": 1.5, "dash": "dash"},
    }
