"""The reports of a table's studies, to go along where a simulation writes the studies into another table."""

from __future__ import annotations

from client.data.columns import Text, column
from client.data.source import read_source
from client.data.table import plain_paths
from client.site import SiteConfig
from client.text.studies import COLUMN_KEYS, text_columns


def report_columns(site: SiteConfig, paths: Text) -> dict[str, list[str]]:
    """Return every column of text the site has for the images at ``paths``, by its key of ``[columns]``.

    Reports come as the table has them: redaction is the reader's. An image without one has that of its
    study, which the other table may not tell. A site without reports has no column.

    Raises:
        TableError: if site.toml names a column of text that the table lacks.
    """
    columns, names = read_source(site), site.columns
    written = text_columns(columns, site)
    if not written:
        return {}
    own = plain_paths(column(columns, names.path, "columns.path", site.data.source)).tolist()
    patients, studies = (columns.get(name) for name in (names.patient, names.study))
    row_of: dict[str, int] = {}
    of_study: dict[tuple[str, str], int] = {}
    studied: dict[str, tuple[str, str]] = {}
    for row, path in enumerate(own):
        told = any(text[row] for text in written.values())
        if told:
            row_of.setdefault(path, row)
        if patients is not None and studies is not None and studies[row]:
            studied[path] = str(patients[row]), str(studies[row])
            if told:
                of_study.setdefault(studied[path], row)
    rows = [row_of.get(path, of_study.get(studied.get(path, ("", "")))) for path in paths.tolist()]
    return {
        COLUMN_KEYS[field]: ["" if row is None else str(text[row]) for row in rows]
        for field, text in written.items()
    }
