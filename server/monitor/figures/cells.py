"""Numbers in the cells of a heat map, legible on every colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TURNS = {"scale:seq": (0.52, 0.66), "scale:div": (0.6, 0.77)}
"""Shares of a colour scale: below the first the ink is legible on a cell in both themes, from the
second on the page's colour; in between ``on-middle`` is, which is the one or the other by theme."""


def cell_numbers(
    table: Sequence[Sequence[float | None]],
    strength: Sequence[Sequence[float]],
    scale: str,
    digits: int,
    size: int,
) -> dict[str, Any]:
    """Write each number into its cell; ``strength`` is 0 where a cell is as pale as the page, 1 at most.

    Both tables are ``[rows][columns]``.
    """
    middle, strong = TURNS[scale]

    def colour(share: float) -> str:
        return "var:page" if share >= strong else "var:on-middle" if share >= middle else "var:ink"

    cells = [
        (column, row, value, colour(strength[row][column]))
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
            "color": [hue for *_, hue in cells],
        },
        "hoverinfo": "skip",
    }
