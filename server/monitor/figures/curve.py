"""One figure of merit over the rounds: the mean of the sites, their spread, the worst, and each site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from server.facts.records import Curve
from server.figure_words import curve_told, metric_words
from server.monitor.figures.style import (
    DASHES,
    FEW,
    MARKERS,
    SERIES,
    Figure,
    axis,
    figure,
    known,
    legend,
    newest,
    round_axis,
    rounded,
)
from server.monitor.figures.text import plain

Trace = dict[str, Any]

CAPTION = (
    "Bold: mean of the sites, each counted once. Band: the middle half of the sites. Dashed: the worst "
    "site of each round; point at it for its name. Shaded rounds were abandoned. A gap: nothing was sent."
)


def draw(curve: Curve, abandoned: Iterable[int] = ()) -> Figure | None:
    """Draw a curve; ``abandoned`` rounds are shaded. None where no site has a value."""
    mean = rounded(curve.mean)
    if newest(mean) is None:
        return None
    several = len(curve.sites) > 1
    x = _places(curve.rounds)
    site_lines = _few(curve, x) if len(curve.sites) <= FEW else _many(curve, x)
    traces = [*_band(curve), *site_lines] if several else []
    if several:
        traces.append(_worst(curve, x))
    traces.append(_mean(curve, mean, x))
    unified = len(curve.sites) <= FEW
    ends = _labels(curve) if len(curve.sites) > FEW else []
    layout = {
        "xaxis": round_axis(curve.rounds, from_start=True, range=_span(curve.rounds)),
        "yaxis": axis(metric_words(curve.metric, curve.finding)),
        "showlegend": several,
        "legend": legend(),
        "hovermode": "x unified" if unified else "closest",
        "shapes": shaded(abandoned),
        "annotations": ends,
        "margin": {"l": 12, "r": 130 if ends else 12, "t": 12, "b": 12},
        "height": 440,
    }
    about = f"curve {curve.metric} {curve.finding}"
    return figure(traces, layout, curve_told(curve), CAPTION, about)


def shaded(rounds: Iterable[int]) -> list[dict[str, Any]]:
    """Return a shape behind every stretch of abandoned rounds."""
    stretches: list[list[int]] = []
    for number in sorted(rounds):
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    return [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": first - 0.5,
            "x1": last + 0.5,
            "y0": 0,
            "y1": 1,
            "fillcolor": "var:grid",
            "opacity": 0.7,
            "line": {"width": 0},
            "layer": "below",
        }
        for first, last in stretches
    ]


def _places(rounds: Sequence[int]) -> dict[str, Any]:
    """Give the x of every line; without a gap two numbers do, which halves what is sent."""
    if list(rounds) == list(range(rounds[0], rounds[0] + len(rounds))):
        return {"x0": rounds[0], "dx": 1}
    return {"x": list(rounds)}


def _span(rounds: Sequence[int]) -> list[float]:
    """From the first to the last round with a little air, so that markers are whole."""
    air = 0.02 * max(1, rounds[-1] - rounds[0])
    return [rounds[0] - air, rounds[-1] + air]


def _mean(curve: Curve, mean: list[float | None], x: dict[str, Any]) -> Trace:
    one = len(curve.sites) == 1
    name = plain(next(iter(curve.sites))) if one else "mean of sites"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(mean) < 3 else "lines",
        "name": name,
        "y": mean,
        **x,
        "line": {"color": "var:ink", "width": 3.5},
        "marker": {"size": 9},
        "hovertemplate": f"{'%{fullData.name}' if one else '<b>mean of sites</b>'} %{{y}}<extra></extra>",
        "legendrank": 1,
    }


def _worst(curve: Curve, x: dict[str, Any]) -> Trace:
    names = [plain(site, 40) for site in curve.worst_site]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "worst site",
        "y": rounded(curve.worst),
        **x,
        "line": {"color": "var:worse", "width": 2, "dash": "dash"},
        "customdata": names,
        "hovertemplate": "<b>worst</b> %{y}, %{customdata}<extra></extra>",
        "legendrank": 2,
    }


def _band(curve: Curve) -> list[Trace]:
    """Outline the spread as one closed shape per stretch of rounds that has one."""
    low, high = rounded(curve.low), rounded(curve.high)
    xs: list[float | None] = []
    ys: list[float | None] = []
    stretch: list[tuple[int, float, float]] = []

    def close() -> None:
        if stretch:
            xs.extend([r for r, _, _ in stretch] + [r for r, _, _ in reversed(stretch)] + [None])
            ys.extend([a for _, a, _ in stretch] + [b for _, _, b in reversed(stretch)] + [None])
        stretch.clear()

    for number, bottom, top in zip(curve.rounds, low, high, strict=True):
        if bottom is None or top is None:
            close()
        else:
            stretch.append((number, bottom, top))
    close()
    if not xs:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "spread of sites" if len(curve.sites) < 4 else "middle half of sites",
            "x": xs[:-1],
            "y": ys[:-1],
            "fill": "toself",
            "fillcolor": "var:series-0",
            "line": {"width": 0},
            "opacity": 0.2,
            "hoverinfo": "skip",
            "legendrank": 3,
        }
    ]


def _few(curve: Curve, x: dict[str, Any]) -> list[Trace]:
    """Each site with a colour, a dash and a marker of its own."""
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(site, 28),
            "y": rounded(values),
            **x,
            "line": {"color": SERIES[i], "width": 1.5, "dash": DASHES[i]},
            "marker": {"symbol": MARKERS[i], "size": 7, "color": SERIES[i], "maxdisplayed": 12},
            "hovertemplate": "%{fullData.name} %{y}<extra></extra>",
            "legendrank": 10 + i,
        }
        for i, (site, values) in enumerate(curve.sites.items())
    ]


def _many(curve: Curve, x: dict[str, Any]) -> list[Trace]:
    """Thin neutral lines that the legend turns on and off together."""
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{len(curve.sites)} sites" if i == 0 else plain(site, 28),
            "meta": plain(site, 40),
            "y": rounded(values),
            **x,
            "line": {"color": "var:soft", "width": 0.7},
            "opacity": 0.4,
            "legendgroup": "sites",
            "showlegend": i == 0,
            "legendrank": 10,
            "hovertemplate": "%{meta}<br>round %{x}: %{y}<extra></extra>",
        }
        for i, (site, values) in enumerate(curve.sites.items())
    ]


def _labels(curve: Curve) -> list[dict[str, Any]]:
    """Name the best and the worst site at the right end."""
    found = newest(curve.mean)
    if found is None:
        return []
    place = found[0]
    ends = sorted((v, site) for site, values in curve.sites.items() if (v := values[place]) is not None)
    if len(ends) < 2:
        return []
    if curve.better == "lower":
        ends.reverse()
    shown = [value for values in curve.sites.values() for value in known(values)]
    near = abs(ends[-1][0] - ends[0][0]) < 0.08 * (max(shown) - min(shown))
    lower = ends[0][0] <= ends[-1][0]
    return [
        {
            "x": curve.rounds[place],
            "y": value,
            "xref": "x",
            "yref": "y",
            "xanchor": "left",
            "showarrow": False,
            "xshift": 8,
            "yshift": (-9 if (word == "worst") == lower else 9) if near else 0,
            "text": f"{word}: {plain(site, 16)}",
            "font": {"color": colour, "size": 12},
        }
        for word, (value, site), colour in (
            ("worst", ends[0], "var:worse"),
            ("best", ends[-1], "var:better"),
        )
    ]
