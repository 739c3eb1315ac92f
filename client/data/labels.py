"""From the table's label columns to a matrix: which column, which values, which mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, listing, matches, numbers
from client.site import LabelSource, SiteConfig
from common.errors import LabelError, closest
from common.findings import label_matrix, suggest


def read_labels(
    columns: Mapping[str, Text],
    rows: NDArray[np.int64],
    site: SiteConfig,
    findings: Sequence[str],
) -> NDArray[np.float32]:
    """Lay the labels of these rows out as ``[rows, findings]``: 1, 0, NaN not annotated.

    Raises:
        LabelError: if a label's column is not in the table, a cell is not 1, 0, -1 or empty, a
            value listed as positive or negative occurs nowhere, or -1 has no policy.
    """
    values = {
        finding: _values(columns, rows, finding, site.labels[finding], site.data.table.name)
        for finding in findings
        if finding in site.labels
    }
    return label_matrix(values, findings, site.uncertainty, len(rows))


def _values(
    columns: Mapping[str, Text], rows: NDArray[np.int64], finding: str, source: LabelSource, table: str
) -> NDArray[np.float64]:
    if source.column not in columns:
        raise LabelError(
            f"site.toml: label column {source.column!r} is not in {table}",
            found=listing(columns),
            fix=_remedy(columns, finding, source.column),
        )
    cells = columns[source.column]
    if source.positive:
        return _words(cells, finding, source, table)[rows]
    values, words = numbers(cells[rows])
    odd = words | ~(np.isnan(values) | np.isin(values, (0.0, 1.0, -1.0)))
    if odd.any():
        # The cells are not shown: the column may be the wrong one and hold identifiers.
        raise LabelError(
            f"label {finding!r}: column {source.column!r} of {table} has {int(odd.sum())} cells that "
            f"are not 1, 0, -1 or empty, the first in row {int(rows[odd][0]) + 1}",
            fix=f"recode it, or set labels.{finding} = "
            f'{{ column = "{source.column}", positive = [...], negative = [...] }}',
        )
    return values


def _words(cells: Text, finding: str, source: LabelSource, table: str) -> NDArray[np.float64]:
    values = np.full(len(cells), np.nan)
    for meaning, name, wanted in ((0.0, "negative", source.negative), (1.0, "positive", source.positive)):
        for value in wanted:
            hit = matches(cells, [value])
            if not hit.any():
                raise LabelError(
                    f"site.toml: labels.{finding}.{name}: no row of {table} has {value!r} "
                    f"in column {source.column!r}",
                    fix="spell it as the table does, or leave it out",
                )
            values[hit] = meaning
    return values


def _remedy(columns: Mapping[str, Text], finding: str, name: str) -> str:
    """Propose the column that carries a name of this finding, else the nearest spelling."""
    proposed = suggest(columns).get(finding)
    if proposed:
        return f'set labels.{finding} = "{proposed}"'
    return closest(name, columns) or f"set labels.{finding} to a column of the table"
