"""The index of a site: every study with its split, its labels and the code it was set aside with.

It is what ``fedcxr-site index`` writes for people to check and what tells a later run that
nothing has changed. Training makes the same judgement from the same files (`assess_site`).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.data.assess import Assessed, assess_site
from client.data.folder import INDEX_SIZE
from client.data.pixel_cache import Progress
from client.site import SiteConfig
from common.files import write_atomic

LABEL, CLINICAL = "label.", "clinical."
"""What the names of the label and clinical columns begin with."""


class Pictures:
    """The kept pictures by row of the index, read when asked for; black where there is none."""

    def __init__(self, assessed: Assessed) -> None:
        self._pixels = assessed.cache.pixels
        self._place = np.full(len(assessed.table), -1, dtype=np.int64)
        self._place[assessed.cached] = np.arange(len(assessed.cached))

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return ``[len(rows), size, size]``."""
        places = self._place[rows]
        pictures = np.zeros((len(places), *self._pixels.shape[1:]), dtype=np.uint8)
        pictures[places >= 0] = self._pixels[places[places >= 0]]
        return pictures


def index_site(
    site: SiteConfig, progress: Progress | None = None, size: int = INDEX_SIZE
) -> tuple[pd.DataFrame, Pictures]:
    """Index a site; returns the index and the pictures, row by row.

    The index has a row for each image the site's table or folder names: ``path``, ``patient``,
    ``study``, ``view``, ``sex``, ``age`` (years), ``scanner``, ``split`` ('' if not used), ``code``
    ('' if used, else of `client.data.reasons`), ``sha256``, ``phash``, then ``label.FINDING`` (1, 0,
    empty) and ``clinical.VARIABLE``.

    Raises:
        DataError: as `assess_site`.
    """
    assessed = assess_site(site, None, None, size, progress=progress)
    return _frame(assessed), Pictures(assessed)


def write_index(index: pd.DataFrame, file: Path) -> bool:
    """Write the index as Parquet, readable by its owner only; returns whether it is another than before."""
    buffer = io.BytesIO()
    index.to_parquet(buffer, index=False)
    if file.is_file() and file.read_bytes() == buffer.getvalue():
        return False
    write_atomic(file, buffer.getvalue())
    return True


def _frame(assessed: Assessed) -> pd.DataFrame:
    table = assessed.table
    told = {name: np.full(len(table), "", dtype=object) for name in ("scanner", "sha256", "phash")}
    for name, cells in told.items():
        cells[assessed.cached] = [getattr(fact, name) for fact in assessed.cache.facts]
    columns: dict[str, object] = {
        name: getattr(table, name).astype(object) for name in ("path", "patient", "study", "view", "sex")
    }
    columns |= {"age": table.age, "scanner": told["scanner"]}
    columns |= {"split": assessed.split.astype(object), "code": table.code.astype(object)}
    columns |= {name: told[name] for name in ("sha256", "phash")}
    columns |= {f"{LABEL}{name}": table.labels[:, j] for j, name in enumerate(table.findings)}
    columns |= {f"{CLINICAL}{name}": table.clinical[:, j] for j, name in enumerate(table.variables)}
    return pd.DataFrame(columns)
