"""Write the page of an index: the summary with pictures, for the people of the site alone.

One file that runs no script and loads nothing. It shows images and file names of patients, says
so, and only its owner can read it.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.data.index import Pictures
from client.review import words
from client.review.summary import MIN_CELL, UNKNOWN, IndexSummary, age_bands, plain, summarise, texts
from common.errors import DataError
from common.files import write_atomic
from common.page import templates_in

SPRITE_BYTES = 2_200_000
"""All pictures of a page together, as base64; fewer per sheet are drawn if they come to more."""
PICTURES = 12
"""Pictures per sheet, if there is room."""
PATHS = 20
"""Paths shown for each reason; all of them stand in the index."""

_LEVELS = 64
"""Grey levels drawn: a third smaller than with 256, and no eye sees it at this size."""
_FEWEST = 2
_LONGEST_PATH = 300


@dataclass(frozen=True)
class Sheet:
    """Pictures of usable images that are alike in one thing, side by side in one PNG."""

    title: str
    total: int
    """Images there are; those shown are drawn at random."""
    captions: tuple[str, ...]
    sprite: str
    """PNG, base64."""


@dataclass(frozen=True)
class _Wanted:
    section: str
    title: str
    rows: NDArray[np.int64]


def write_page(
    index: pd.DataFrame,
    thumbnails: NDArray[np.uint8] | Pictures,
    site: str,
    folder: Path,
    min_cell: int = MIN_CELL,
) -> Path:
    """Write ``index.html`` into ``folder``, readable by its owner alone; return its path.

    Args:
        thumbnails: ``[rows, 96, 96]``; row i belongs to row i of the index.

    Raises:
        DataError: if there are not as many thumbnails as rows.
    """
    if len(thumbnails) != len(index):
        raise DataError(
            "the thumbnails are not those of the index",
            found=f"{len(thumbnails)} thumbnails, {len(index)} rows",
            fix="run fedcxr-site index again",
        )
    page = folder / "index.html"
    write_atomic(page, render_page(index, thumbnails, site, datetime.now().astimezone(), min_cell).encode())
    return page


def render_page(
    index: pd.DataFrame,
    thumbnails: NDArray[np.uint8] | Pictures,
    site: str,
    written: datetime,
    min_cell: int = MIN_CELL,
) -> str:
    """Return the page as HTML; the same index and time give the same page."""
    environment = templates_in(Path(__file__).parent / "templates")
    environment.filters |= {
        "percent": words.percent,
        "amount": words.amount,
        "count": lambda number: f"{number:,}",
        "words": lambda name: name.replace("_", " "),
    }
    summary = summarise(index, site, min_cell)
    loud = words.notices(summary)
    return environment.get_template("index.html.j2").render(
        summary=summary,
        written=written,
        headline=words.headline(summary),
        notices=loud,
        not_asked=words.not_asked(summary),
        tone="worse" if not summary.usable.images else "mixed" if summary.faults or loud else "better",
        counted=words.counted,
        sheets=contact_sheets(index, thumbnails, summary),
        paths=_paths(index, summary),
    )


def contact_sheets(
    index: pd.DataFrame, thumbnails: NDArray[np.uint8] | Pictures, summary: IndexSummary
) -> dict[str, list[Sheet]]:
    """Draw images of each finding, scanner, view and reason, by section.

    Which ones is random but always the same, one per patient as far as they go.
    """
    wanted = list(_wanted(index, summary))
    patient, captions = texts(index, "patient"), _captions(index)
    most = PICTURES
    while True:
        sheets: dict[str, list[Sheet]] = {"findings": [], "scanners": [], "views": [], "set aside": []}
        for part in wanted:
            rows = _drawn(part, patient, most)
            tiles = np.asarray(thumbnails[rows])
            if part.section == "set aside":
                rows, tiles = rows[tiles.any(axis=(1, 2))], tiles[tiles.any(axis=(1, 2))]
            if len(rows):
                sheet = Sheet(part.title, len(part.rows), tuple(captions[rows]), _sprite(tiles))
                sheets[part.section].append(sheet)
        size = sum(len(sheet.sprite) for part in sheets.values() for sheet in part)
        if size <= SPRITE_BYTES or most == _FEWEST:
            return sheets
        most = max(_FEWEST, int(most * SPRITE_BYTES / size))


def _wanted(index: pd.DataFrame, summary: IndexSummary) -> Iterator[_Wanted]:
    code = texts(index, "code")
    for finding in summary.findings:
        rows = np.flatnonzero((code == "") & (index[f"label.{finding.name}"].to_numpy() == 1))
        yield _Wanted("findings", finding.name.replace("_", " "), rows)
    for section, column, groups in (
        ("scanners", "scanner", summary.scanners),
        ("views", "view", summary.views),
    ):
        values = texts(index, column)
        for group in groups:
            # A single sheet of unknowns would repeat the findings' pictures and tell nothing.
            if group.value is not None and len(groups) > (group.name == UNKNOWN):
                yield _Wanted(section, group.name, np.flatnonzero((code == "") & (values == group.value)))
    for part in summary.set_aside:
        yield _Wanted("set aside", part.code, np.flatnonzero(code == part.code))


def _drawn(part: _Wanted, patient: NDArray[np.object_], most: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(zlib.crc32(f"{part.section}/{part.title}".encode()))
    rows = generator.permutation(part.rows)
    again = pd.Series(patient[rows], dtype=object).duplicated().to_numpy()
    return np.sort(np.concatenate([rows[~again], rows[again]])[:most])


def _captions(index: pd.DataFrame) -> NDArray[np.object_]:
    """Say of each image its view, sex and age band, as far as known; never whose it is."""
    bands = age_bands(index["age"].to_numpy(np.float64))
    captions = [
        " ".join(part for part in (plain(view, 12), plain(sex, 1), band) if part)
        for view, sex, band in zip(
            texts(index, "view"), texts(index, "sex"), np.where(bands == UNKNOWN, "", bands), strict=True
        )
    ]
    return np.array(captions, dtype=object)


def _sprite(tiles: NDArray[np.uint8]) -> str:
    from PIL import Image

    strip = np.concatenate(list(tiles), axis=1)
    step = 256 // _LEVELS
    coarse = np.round((strip // step) * (255 / (_LEVELS - 1))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).save(stream, "PNG", compress_level=2)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _paths(index: pd.DataFrame, summary: IndexSummary) -> dict[str, list[str]]:
    """Return the first paths set aside for each reason, fit to be shown."""
    code, path = texts(index, "code"), texts(index, "path")
    first: dict[str, Any] = {
        part.code: path[np.flatnonzero(code == part.code)[:PATHS]] for part in summary.set_aside
    }
    return {code: [plain(str(cell), _LONGEST_PATH) for cell in cells] for code, cells in first.items()}
