"""Every model at every site: AUROC as a heat map."""

from __future__ import annotations

from typing import Any

from server.facts.records import Matrix
from server.figure_words import MATRIX_CAPTION, best_models, interval_words, matrix_told
from server.monitor.figures.cells import cell_numbers
from server.monitor.figures.style import Figure, colourbar, figure, grid_of, known, names_axis
from server.monitor.figures.text import plain
from server.report_words import number

ROW = 30
NUMBERED = 12
"""Up to so many sites the cells show their numbers."""


def draw(matrix: Matrix) -> Figure | None:
    """Draw the matrix; None where no model was measured anywhere."""
    values = known(value for row in matrix.values for value in row)
    if not values:
        return None
    few = len(matrix.sites) <= NUMBERED
    rows, columns = len(matrix.models), len(matrix.sites)
    low, high = scale_ends(values)
    heat = {
        "type": "heatmap",
        "x": list(range(columns)),
        "y": list(range(rows)),
        "z": grid_of(matrix.values),
        "hovertext": _hovers(matrix),
        "hoverinfo": "text",
        "hoverongaps": True,
        "zmin": low,
        "zmax": high,
        "colorscale": "scale:seq",
        "colorbar": colourbar("AUROC"),
        "xgap": 2 if few else 1,
        "ygap": 2 if few else 1,
    }
    layout = {
        "xaxis": names_axis(
            [*matrix.sites], side="top", range=[-0.5, columns - 0.5], tickangle=0 if columns <= 6 else -45
        ),
        "yaxis": names_axis([*matrix.models], most=28, range=[rows - 0.5, -0.5]),
        "shapes": _own_cells(matrix),
        "height": 110 + max(ROW if few else 16, 14) * max(rows, 4) + (70 if columns > 6 else 0),
    }
    caption = MATRIX_CAPTION if few else f"{MATRIX_CAPTION} Point at a cell for its number."
    traces = [heat, _missing(matrix)]
    if few:
        strength = [
            [0.0 if value is None else (value - low) / (high - low) for value in row] for row in matrix.values
        ]
        traces.append(cell_numbers(matrix.values, strength, "scale:seq", 3, 13 if columns <= 8 else 11))
    traces.append(_best(matrix, few))
    about = f"matrix {matrix.finding} {columns}"
    return figure([t for t in traces if t], layout, matrix_told(matrix), caption, about)


def scale_ends(values: list[float]) -> tuple[float, float]:
    """Return the ends of the colours: the data's, but never so near that noise looks like a difference.

    >>> scale_ends([0.8, 0.81])
    (0.755, 0.855)
    """
    low, high = min(values), max(values)
    short = max(0.0, 0.1 - (high - low)) / 2
    return round(low - short, 4), round(high + short, 4)


def _hovers(matrix: Matrix) -> list[list[str]]:
    sites = [plain(site, 60) for site in matrix.sites]
    table = []
    for model, values, intervals in zip(matrix.models, matrix.values, matrix.intervals, strict=True):
        head = f"<b>{plain(model, 60)}</b> at "
        table.append(
            [
                f"{head}{site}<br>"
                + ("not measured" if value is None else f"{number(value)}{interval_words(reach)}")
                for site, value, reach in zip(sites, values, intervals, strict=True)
            ]
        )
    return table


def _own_cells(matrix: Matrix) -> list[dict[str, Any]]:
    """Outline the cell of each model at the site that trained it alone."""
    return [
        {
            "type": "rect",
            "x0": column - 0.48,
            "x1": column + 0.48,
            "y0": row - 0.47,
            "y1": row + 0.47,
            "line": {"color": "var:ink", "width": 2},
        }
        for row, own in enumerate(matrix.own)
        for column, site in enumerate(matrix.sites)
        if own == site
    ]


def _missing(matrix: Matrix) -> dict[str, Any] | None:
    cells = [(i, j) for i, row in enumerate(matrix.values) for j, value in enumerate(row) if value is None]
    if not cells:
        return None
    return {
        "type": "scatter",
        "mode": "text",
        "x": [j for _, j in cells],
        "y": [i for i, _ in cells],
        "text": "n/a",
        "textfont": {"color": "var:soft", "size": 11 if len(matrix.sites) <= NUMBERED else 7},
        "hoverinfo": "skip",
    }


def _best(matrix: Matrix, few: bool) -> dict[str, Any]:
    """Put a star into the corner of the best model's cell at each site."""
    cells = [(row, column) for column, rows in enumerate(best_models(matrix)) for row in rows]
    aside, above = (0.36, 0.24) if few else (0.0, 0.0)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [column + aside for _, column in cells],
        "y": [row - above for row, _ in cells],
        "hoverinfo": "skip",
        "cliponaxis": False,
        "marker": {
            "symbol": "star",
            "size": 13 if few else 9,
            "color": "var:page",
            "line": {"color": "var:ink", "width": 1.2},
        },
    }
