"""Where on the scale of scores a finding's studies lie, in cells that are the same at every site.

A probability falls into one of 1,024 cells of its logit z, of equal width in tanh(z / 8): a 64th wide
around z = 0 and wider outwards, without an end. With counts by cell the AUROC over several sites'
studies is known but for the pairs that share a cell (`server.pooled`).

A site joins adjacent cells until each holds enough studies with the finding and enough without. Then it
also cuts at every eighth edge only: where a cut lies must not tell of the one study that filled a cell.
The cells of a finding are the bins of its reliability diagram too: of two cuts of one ranking, the
difference could be a few studies.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.metrics.platt import logits

CELLS = 1024
STEP = 8
"""Where cells are joined, each ends at a multiple of this."""
_SCALE = 8.0
_EDGES: NDArray[np.float64] = _SCALE * np.arctanh(np.arange(1, CELLS) / (CELLS / 2) - 1)

Span = tuple[int, int]
"""First cell, and the one after the last."""


def cell_of(probabilities: NDArray[Any]) -> NDArray[np.intp]:
    """Return the cell of each probability ``[N]``; equal probabilities share one, in order of size.

    >>> cell_of(np.array([0.0, 0.5, 0.51, 1.0], dtype=np.float32))
    array([   0,  512,  514, 1010])

    Raises:
        DataError: if a probability is not within 0 to 1.
    """
    return np.searchsorted(_EDGES, logits(probabilities), side="right")


def spans(cells: NDArray[np.intp], labels: NDArray[Any], min_cell: int) -> tuple[Span, ...]:
    """Return the cells ``[N]`` of annotated studies joined into spans, lowest first; ``labels`` are 1 or 0.

    Each holds at least ``min_cell`` studies of either label: from the lowest up cells are joined until
    it does, and what is left over at the top joins the last. They begin at 0, end at `CELLS` and leave
    no gap. None where all studies together are too few. With ``min_cell`` at 1 or below: every cell that
    holds a study, by itself.

    >>> spans(np.array([3, 3, 9, 700]), np.array([0, 1, 0, 1]), 1)
    ((3, 4), (9, 10), (700, 701))
    >>> spans(np.array([3, 3, 9, 700]), np.array([0, 1, 0, 1]), 2)
    ((0, 1024),)
    """
    if min_cell <= 1:
        return tuple((int(cell), int(cell) + 1) for cell in np.unique(cells))
    width = CELLS // STEP
    positives = np.bincount(cells[labels == 1] // STEP, minlength=width)
    negatives = np.bincount(cells[labels == 0] // STEP, minlength=width)
    ends = [0]
    with_it = without = 0
    for place in range(width):
        with_it, without = with_it + int(positives[place]), without + int(negatives[place])
        if min(with_it, without) >= min_cell:
            ends.append((place + 1) * STEP)
            with_it = without = 0
    if len(ends) > 1:
        ends[-1] = CELLS
    return tuple(pairwise(ends))
