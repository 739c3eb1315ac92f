"""The report of each image of a site, as far as its redaction leaves it; it never leaves the site."""

from __future__ import annotations

import logging

from client.data.columns import Text, column
from client.data.source import read_source
from client.data.table import plain_paths
from client.site import SiteConfig
from client.text.studies import Cells, text_columns, used_text
from common.sections import Redaction

_log = logging.getLogger(__name__)


def read_texts(site: SiteConfig, paths: Text, redaction: Redaction) -> tuple[str, ...]:
    """Return the redacted report of each image, '' where there is none.

    An image without text of its own has that of its study: reports are often written into the row of
    one image only. A site whose table has no column of reports has none, which is no error: a model
    of image and text can do without.

    Raises:
        TableError: if site.toml names a column of text that the table lacks.
    """
    columns = read_source(site)
    written = text_columns(columns, site)
    if not written:
        _log.warning("%s has no column of reports: the model sees the images alone", site.data.source)
        return ("",) * len(paths)
    own = plain_paths(column(columns, site.columns.path, "columns.path", site.data.source)).tolist()
    studies = _studies(columns, site, len(own))
    of_path: dict[str, tuple[Cells, str]] = {}
    of_study: dict[str, Cells] = {}
    for row, path in enumerate(own):
        cells = tuple((field, str(text[row])) for field, text in written.items() if text[row])
        if path not in of_path or not of_path[path][0]:
            of_path[path] = cells, studies[row]
        if cells and studies[row]:
            of_study.setdefault(studies[row], cells)
    left: dict[Cells, str] = {(): ""}
    texts = []
    for path in paths.tolist():
        cells, study = of_path.get(path, ((), ""))
        cells = cells or of_study.get(study, ())
        if cells not in left:
            left[cells] = used_text(cells, redaction)[0]
        texts.append(left[cells])
    _log.info("%s: %d of %d images with text", site.data.source, sum(map(bool, texts)), len(texts))
    return tuple(texts)


def _studies(columns: dict[str, Text], site: SiteConfig, count: int) -> list[str]:
    """Return whose and which study each row is of, '' where the table does not tell."""
    names = site.columns.patient, site.columns.study
    if any(name not in columns for name in names):
        return [""] * count
    patients, studies = (column(columns, name, "columns", site.data.source).tolist() for name in names)
    return [f"{p}\0{s}" if p and s else "" for p, s in zip(patients, studies, strict=True)]
