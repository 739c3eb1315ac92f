"""A folder of DICOM or picture files as a table: the headers say whose image it is, a table the labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from client.data.columns import Text, column, read_columns
from client.data.facts import Facts
from client.data.pixel_cache import PixelCache, Progress
from client.data.root import Root
from client.site import SiteConfig
from common.errors import TableError

_log = logging.getLogger(__name__)

INDEX_SIZE = 96
"""Side of the pictures that indexing keeps: the contact sheet's, and the embedded backbone's."""

_NOT_IMAGES = {
    ".csv", ".tsv", ".parquet", ".pq", ".xlsx", ".xls", ".ods", ".txt", ".md", ".toml", ".json",
    ".xml", ".yaml", ".yml", ".html", ".htm", ".log", ".pdf", ".gz", ".zip", ".tgz", ".db", ".ini",
}  # fmt: skip
_NEVER = {"DICOMDIR", "LOCKFILE", "VERSION", "Thumbs.db"}
_FACTS = ("patient", "study", "view", "age", "sex", "accession", "instance")
_ABSENT, _CONTRADICTION = -1, -2

CONFLICT = "fedcxr:conflict"
"""Column that marks files whose rows of the table contradict each other."""


def walk(root: Path, without: tuple[Path, ...] = ()) -> Iterator[str]:
    """Yield the files under ``root`` that may be images, relative to it, in a fixed order.

    Hidden files and folders, files whose name says they are something else, and the folders in
    ``without`` are passed over. Links to folders are not followed; a link to a file is yielded,
    for whether it leads out of the root is judged later.
    """
    left_out = {path.resolve() for path in without}
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and (here / name).resolve() not in left_out
        )
        for name in sorted(files):
            if name[0] != "." and name not in _NEVER and Path(name).suffix.lower() not in _NOT_IMAGES:
                yield str((here / name).relative_to(root))


def read_folder(site: SiteConfig, progress: Progress | None = None) -> dict[str, Text]:
    """Read what the files' headers say, and join the site's table, if it has one, to it.

    A link that leads out of the folder is listed and not read. What was read is kept in a cache of
    its own, which holds every file, so that no later choice among them has any read again. The
    table's row is found by ``data.join``. A file without a row has empty cells; where two
    rows with the same key differ, neither is believed and `CONFLICT` marks the file.

    Raises:
        TableError: if the folder holds no file, or the table cannot be read or lacks the key.
    """
    data, names = site.data, site.columns
    paths = list(walk(data.root, (data.cache, data.state)))
    if not paths:
        raise TableError("site.toml: data.root holds no image file", found=str(data.root))
    root = Root(data.root)
    inside = [path for path in paths if root.holds(path)]
    cache = PixelCache.open(
        data.cache / "folder", inside, data.root, INDEX_SIZE, burned_in=data.burned_in, progress=progress
    )
    told = dict(zip(inside, cache.facts, strict=True))
    facts = {
        key: np.array([getattr(told.get(path, Facts()), key) for path in paths], np.str_) for key in _FACTS
    }
    columns = {getattr(names, key): cells for key, cells in facts.items()}
    columns[names.path] = np.array(paths, dtype=np.str_)
    columns[names.file] = np.array([Path(path).name for path in paths], dtype=np.str_)
    if data.table is not None:
        key = getattr(names, data.join)
        columns |= _joined(columns, key, site)
    return columns


def _joined(headers: dict[str, Text], key: str, site: SiteConfig) -> dict[str, Text]:
    """Bring the table's columns into the order of the files; where both know, the table is believed."""
    table = read_columns(site.data.table) if site.data.table else {}
    keys = column(table, key, f"columns.{site.data.join}", site.data.source)
    others = [name for name in table if name not in (key, site.columns.path, site.columns.file)]
    row_of: dict[str, int] = {}
    for i, value in enumerate(keys.tolist()):
        first = row_of.setdefault(value, i)
        if first >= 0 and any(table[name][first] != table[name][i] for name in others):
            row_of[value] = _CONTRADICTION
    rows = np.array([row_of.get(value, _ABSENT) if value else _ABSENT for value in headers[key].tolist()])
    joined = {CONFLICT: np.where(rows == _CONTRADICTION, "1", "").astype(np.str_)}
    for name in others:
        cells = np.where(rows >= 0, table[name][np.maximum(rows, 0)], "")
        joined[name] = np.where(cells == "", headers.get(name, ""), cells)
    _log.info(
        "%d of %d files have a row, %d of %d rows have a file",
        int((rows >= 0).sum()), len(rows), len(set(rows[rows >= 0].tolist())), len(keys),
    )  # fmt: skip
    return joined
