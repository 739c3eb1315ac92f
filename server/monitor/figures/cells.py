"""Numbers in the cells of a heat map, legible on every colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

STRONG = 0.6
"""Share of the colour scale from which a cell's number takes the page's colour and not the ink's.

Between the light theme's best place, 0.67, and the dark one's, 0.52: one figure serves both.
"""


def cell_numbers(
    table: Sequence[Sequence[float | None]], strength: Sequence[Sequence[float]], digits: int, size: int
) -> dict[str, Any]:
    """Write each number into its cell; ``strength`` is 0 where a cell is as pale as the page, 1 at most.

    Both tables are ``[rows][columns]``.
    """
    cells = [
        (column, row, value, strength[row][column] >= STRONG)
        for row, values in enumerate(table)
        for column, value in enumerate(values)
        if value is not None
    ]
    return {
        "type": "scatter",
        "mode": "text",
        "x": [column for column, _, _, _ in cells],
        "y": [row for _, row, _, _ in cells],
        "text": [f"{value:.{digits}f}".replace("-", "−") for _, _, value, _ in cells],
        "textfont": {
            "size": size,
            "color": ["var:page" if strong else "var:ink" for *_, strong in cells],
        },
        "hoverinfo": "skip",
    }
