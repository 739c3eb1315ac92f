"""From the table's label and clinical columns to matrices: which column, which values, which mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, column, fixed_width, listing, matches, numbers
from client.site import LabelSource, SiteConfig
from common.clinical import VARIABLES, plausible
from common.errors import LabelError, TableError, closest
from common.findings import FINDINGS, label_matrix, suggest


class Labels(NamedTuple):
    """Labels of some rows, and which rows hold a cell that is no label."""

    values: NDArray[np.float32]
    """``[rows, findings]``: 1, 0, NaN not annotated."""
    odd: NDArray[np.bool_]
    """``[rows]``: a cell is not 1, 0, -1 or empty."""


def annotated_findings(site: SiteConfig, columns: Mapping[str, Text]) -> tuple[str, ...]:
    """Return every finding the site has labels of, from columns or from its reports."""
    return tuple(dict.fromkeys([*label_sources(site, columns), *site.text.label]))


def label_sources(site: SiteConfig, columns: Mapping[str, Text]) -> dict[str, LabelSource]:
    """Return finding -> source: what site.toml names, and all that a public layout annotates."""
    if site.data.layout in ("table", "folder"):
        return dict(site.labels)
    published = {finding: LabelSource(column=finding) for finding in FINDINGS if finding in columns}
    return published | site.labels


def read_labels(
    columns: Mapping[str, Text],
    rows: NDArray[np.int64],
    site: SiteConfig,
    findings: Sequence[str],
) -> Labels:
    """Lay the labels of these rows out.

    Raises:
        LabelError: if a label's column is not in the table, a value listed as positive or
            negative occurs nowhere, -1 has no policy, or most cells of a column are no labels.
    """
    sources = label_sources(site, columns)
    read = [finding for finding in findings if finding in site.text.label and finding not in sources]
    values = _told(columns, rows, site, read) if read else {}
    odd = np.zeros(len(rows), dtype=bool)
    for finding in findings:
        if finding in sources:
            values[finding], wrong = _values(columns, rows, finding, sources[finding], site.data.source)
            odd |= wrong
    return Labels(label_matrix(values, findings, site.uncertainty, len(rows)), odd)


def _told(
    columns: Mapping[str, Text], rows: NDArray[np.int64], site: SiteConfig, findings: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Read findings from what the reports state; NaN where they say nothing of one.

    The indication is left out: what it knows, the image need not show.
    """
    from client.text.labeller import label_report
    from client.text.sections import split_report

    names = {key: getattr(site.columns, key) for key in ("report", "findings_text", "impression")}
    if not (texts := {key: columns[name] for key, name in names.items() if name in columns}):
        raise TableError(
            f"{site.data.source} has no column of reports to read text.label from",
            found=listing(columns),
            fix="set columns.report, or columns.findings_text and columns.impression",
        )
    values = {finding: np.full(len(rows), np.nan) for finding in findings}
    for i, row in enumerate(rows):
        fields = split_report(str(texts["report"][row])) if "report" in texts else {}
        fields |= {key: str(cells[row]) for key, cells in texts.items() if key != "report"}
        said = label_report("\n\n".join(text for key, text in fields.items() if key != "indication"))
        for finding in findings:
            values[finding][i] = said.get(finding, np.nan)
    return values


def _values(
    columns: Mapping[str, Text], rows: NDArray[np.int64], finding: str, source: LabelSource, table: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if source.column not in columns:
        raise LabelError(
            f"site.toml: label column {source.column!r} is not in {table}",
            found=listing(columns),
            fix=_remedy(columns, finding, source.column),
        )
    cells = fixed_width(columns[source.column])
    if source.positive:
        return _words(cells, finding, source, table)[rows], np.zeros(len(rows), dtype=bool)
    values, words = numbers(cells[rows])
    odd = words | ~(np.isnan(values) | np.isin(values, (0.0, 1.0, -1.0)))
    filled = cells[rows] != ""
    if odd.sum() * 2 > filled.sum():
        # The cells are not shown: the column may be the wrong one and hold identifiers.
        raise LabelError(
            f"label {finding!r}: column {source.column!r} of {table} has {int(odd.sum())} cells that "
            f"are not 1, 0, -1 or empty, the first in row {int(rows[odd][0]) + 1}",
            fix=f"recode it, or set labels.{finding} = "
            f'{{ column = "{source.column}", positive = [...], negative = [...] }}',
        )
    values[odd] = np.nan
    return values, odd


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


def read_clinical(
    columns: Mapping[str, Text],
    rows: NDArray[np.int64],
    site: SiteConfig,
    variables: Sequence[str],
    age: NDArray[np.float32],
    sex: Text,
) -> NDArray[np.float32]:
    """Lay clinical variables of these rows out as ``[rows, variables]``; NaN is missing.

    A variable the site does not have is NaN throughout. So is a cell that is no number or lies
    outside the variable's plausible range.

    Raises:
        TableError: if site.toml names a column that the table does not have.
    """
    table = np.full((len(rows), len(variables)), np.nan, dtype=np.float32)
    for j, name in enumerate(variables):
        if name in site.clinical:
            cells = column(columns, site.clinical[name], f"clinical.{name}", site.data.source)[rows]
            values, _ = numbers(cells)
        elif name in ("age", "male"):
            values = person(name, age, sex)
        elif name in columns and site.data.layout not in ("table", "folder"):
            values, _ = numbers(columns[name][rows])
        else:
            continue
        table[:, j] = plausible(values, name)
    return table


def person(name: str, age: NDArray[np.float32], sex: Text) -> NDArray[np.float64]:
    """Return the variable age or male from what is known of age (years) and sex (M, F)."""
    if name == "age":
        return plausible(age.astype(np.float64), name)
    return np.select([sex == "M", sex == "F"], [1.0, 0.0], np.nan)


def clinical_names(site: SiteConfig, columns: Mapping[str, Text], headers: bool) -> tuple[str, ...]:
    """Return the clinical variables this site can fill; ``headers``: DICOM files may tell age and sex."""
    public = site.data.layout not in ("table", "folder")
    return tuple(
        name
        for name in VARIABLES
        if name in site.clinical
        or (name == "age" and (headers or site.columns.age in columns))
        or (name == "male" and (headers or site.columns.sex in columns))
        or (public and name in columns)
    )
