"""One study of the catalogue of bad input: what lies on disk, what the table says, what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.reasons import Reason
from simulations.phantom.cases import FINDINGS, sample_cases
from simulations.phantom.render import render
from simulations.phantom.scanner import SCANNERS, apply_scanner

PLANTED = "Quillfeather"
"""A surname in headers, cells, comments and reports, which must appear in no output."""

Code = Reason | Literal[""]
"""'' is a study that must be used."""


class Study(NamedTuple):
    """A phantom that nobody has spoiled yet."""

    pixels: NDArray[np.uint8]
    """``[H, W]``, bright where the radiograph is bright."""
    cells: Mapping[str, str]
    """Column -> cell of the table, all but the path."""


class Spoiled(NamedTuple):
    """One row of the table with its file."""

    path: str
    code: Code
    study: Study
    content: bytes | Callable[[Path], object] | None = None
    """The file's bytes, or what makes it; None leaves nothing there."""
    cells: Mapping[str, str] = {}
    """Cells that differ from the study's."""


def draw_studies(n: int, *, seed: int, size: int) -> list[Study]:
    """Draw ``n`` frontal studies of as many patients, every one of them called `PLANTED`."""
    cases = sample_cases(n, seed=seed)
    shown = apply_scanner(render(cases, size), SCANNERS["reference"], seed=seed, index=cases.index)
    return [
        Study(
            shown[i].astype(np.uint8),
            {
                "patient": f"{PLANTED}-{i:03d}",
                "study": f"X{i:06d}",
                "view": str(cases.view[i]),
                "age": str(int(cases.age[i])),
                "sex": "F" if cases.female[i] else "M",
                "indication": f"Follow-up of {PLANTED}.",
            }
            | {name: str(cell) for name, cell in zip(FINDINGS, cases.labels[i], strict=True)},
        )
        for i in range(n)
    ]
