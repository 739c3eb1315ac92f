"""What all figures have in common: colours by name, axes, legend, and rounded numbers.

A figure names colours, it does not hold them: ``var:ink`` stands for the CSS variable ``--ink``,
``scale:seq`` and ``scale:div`` for a sequential and a diverging colour scale. The page's script puts
in the values of the theme it shows, so one figure serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]
"""``data`` and ``layout`` for Plotly, ``alt`` for who cannot see it, ``caption``: how to read it."""

COLOURS = ("page", "panel", "ink", "on-middle", "soft", "line", "grid", "worse", "better", "unclear")
"""CSS variables a figure may name, beside ``font``, ``arm-0`` to ``arm-4``, ``series-0`` to ``series-7``."""

CLEAR = "rgba(0,0,0,0)"
SERIES = tuple(f"var:series-{i}" for i in range(8))
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "dash", "dot")
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
FEW = 8
"""Up to so many sites each has a colour, a dash and a marker of its own."""

FONT = 13
SMALL = 12


def figure(data: list[dict[str, Any]], layout: dict[str, Any], alt: str, caption: str, about: str) -> Figure:
    """Put a figure together; ``about`` says what it shows: while it is the same, a zoom is kept."""
    base: dict[str, Any] = {
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": "var:font", "color": "var:ink", "size": FONT},
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "hoverlabel": {
            "bgcolor": "var:panel",
            "bordercolor": "var:line",
            "font": {"family": "var:font", "color": "var:ink", "size": FONT},
            "align": "left",
            "namelength": -1,
        },
        "modebar": {"bgcolor": CLEAR, "color": "var:soft", "activecolor": "var:ink"},
        "showlegend": False,
        "hovermode": "closest",
        "height": 380,
        "uirevision": about,
    }
    return {"data": data, "layout": {**base, **layout}, "alt": alt, "caption": caption}


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """Return an axis whose labels always fit."""
    settings: dict[str, Any] = {
        "automargin": True,
        "gridcolor": "var:grid",
        "linecolor": "var:line",
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": SMALL},
        "title": {"text": title, "font": {"size": FONT}, "standoff": 10},
    }
    return {**settings, **more}


def round_axis(rounds: Sequence[int], from_start: bool = False, **more: Any) -> dict[str, Any]:
    """Return an axis of rounds, ticked at whole numbers only."""
    step = whole_step(max(rounds, default=1) - min(rounds, default=0))
    title = "round (0: at the start)" if from_start else "round"
    return axis(title, tick0=0, dtick=step, tickformat="d", **more)


def names_axis(names: Sequence[str], most: int = 22, **more: Any) -> dict[str, Any]:
    """Return an axis of places 0, 1, ... labelled with names: a site may be named like a number or a day."""
    from server.monitor.figures.text import plain

    ticks = [plain(name, most) for name in names]
    settings = {"tickvals": list(range(len(names))), "ticktext": ticks, "showgrid": False}
    return axis(**{**settings, **more})


def legend(**more: Any) -> dict[str, Any]:
    """Return a legend that stands above the plot and pushes it down, never over the data."""
    settings = {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "bgcolor": CLEAR,
        "font": {"size": SMALL},
        "itemwidth": 36,
    }
    return {**settings, **more}


def colourbar(title: str, **more: Any) -> dict[str, Any]:
    """Return the key of a heat map."""
    settings = {
        "title": {"text": title, "side": "right", "font": {"size": SMALL}},
        "tickfont": {"size": SMALL},
        "thickness": 12,
        "outlinewidth": 0,
        "ticks": "",
    }
    return {**settings, **more}


def whole_step(span: float, ticks: int = 10) -> int:
    """Return the smallest of 1, 2, 5, 10, 20 ... that parts ``span`` into at most ``ticks``.

    >>> whole_step(8), whole_step(24), whole_step(500)
    (1, 5, 50)
    """
    step = 1
    while span / step > ticks:
        leading = step // 10 ** int(math.log10(step) + 1e-9)
        step = step * 5 // 2 if leading == 2 else step * 2
    return step


def rounded(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Round to ``digits`` significant digits; what is not a finite number becomes None.

    >>> rounded([0.123456, None, 1234567.0, 0.0, float("nan")])
    [0.1235, None, 1235000.0, 0.0, None]
    """
    array = np.array(list(values), dtype=float)
    finite = np.isfinite(array)
    array[~finite] = 0.0
    size = np.floor(np.log10(np.abs(array), where=array != 0, out=np.zeros_like(array)))
    # Whole powers of ten multiplied or divided by are exact, so each result prints in few digits.
    up, down = 10.0 ** np.clip(digits - 1 - size, 0, 300), 10.0 ** np.clip(size - digits + 1, 0, 300)
    numbers = np.round(array * up / down) / up * down
    if finite.all():
        return list(numbers.tolist())
    return [value if known else None for value, known in zip(numbers.tolist(), finite.tolist(), strict=True)]


def grid_of(rows: Iterable[Iterable[float | None]]) -> list[list[float | None]]:
    """Round a table of numbers."""
    return [rounded(row) for row in rows]


def known(values: Iterable[float | None]) -> list[float]:
    """Return the finite numbers among ``values``."""
    return [value for value in values if value is not None and math.isfinite(value)]


def newest(values: Sequence[float | None]) -> tuple[int, float] | None:
    """Return place and value of the last number; None where there is none."""
    for place in range(len(values) - 1, -1, -1):
        value = values[place]
        if value is not None and math.isfinite(value):
            return place, value
    return None
