"""The table of studies: which images a site has, whose they are and what is known of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, column, matches, years
from client.data.duplicates import same_image
from client.data.folder import CONFLICT
from client.data.labels import annotated_findings, clinical_names, read_clinical, read_labels
from client.data.pixel_cache import Progress
from client.data.reasons import Reason
from client.data.root import Root
from client.data.source import read_source
from client.data.split import SPLITS, check_split
from client.site import ColumnsConfig, SiteConfig
from common.errors import SplitError, TableError
from common.findings import canonical

_log = logging.getLogger(__name__)

_SPLIT_NAMES = {name: name for name in SPLITS} | {"val": "validation", "valid": "validation"}
_MALE, _FEMALE = ("M", "MALE", "MÄNNLICH"), ("F", "FEMALE", "W", "WEIBLICH")
_MAYBE_DICOM = {".dcm", ".dicom", ""}


@dataclass(frozen=True)
class StudyTable:
    """One row per image, also those that cannot be used: their ``code`` says why."""

    findings: tuple[str, ...]
    variables: tuple[str, ...]
    path: Text
    patient: Text
    study: Text
    view: Text
    age: NDArray[np.float32]
    sex: Text
    labels: NDArray[np.float32]
    """``[rows, findings]``: 1, 0, NaN not annotated."""
    clinical: NDArray[np.float32]
    """``[rows, variables]`` in the vocabulary's units; NaN missing."""
    annotated: tuple[str, ...]
    """Every finding the site annotates, whichever were asked for."""
    strata: NDArray[np.float32]
    """``[rows, annotated]``: a split must not change with the findings asked for."""
    code: Text
    """A code of `client.data.reasons`; '' for a row that may be used."""
    split: Text | None = None
    """train, validation or test where the table says so."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Filter -> rows left out because they were not asked for."""

    def __len__(self) -> int:
        return len(self.path)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> StudyTable:
        """Return the rows given by index or mask, in that order."""
        arrays = {
            f.name: getattr(self, f.name)[rows]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        return replace(self, **arrays)


def read_studies(
    site: SiteConfig,
    findings: Sequence[str] | None = None,
    clinical: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> StudyTable:
    """Read the rows a site offers for these findings and clinical variables; None: all it has.

    A row that cannot be used keeps its place and gets a code. A finding or a variable the site
    does not have is NaN throughout.

    Raises:
        TableError: if the table or a column is missing, the view is asked for and not known, or
            the filters leave nothing.
        LabelError: if a label column cannot be used, or -1 has no policy.
        SplitError: if the table's own split is incomplete or shares a patient.
    """
    name = site.data.source
    columns = read_source(site, progress)
    names = site.columns
    annotated = annotated_findings(site, columns)
    wanted = annotated if findings is None else tuple(canonical(finding) for finding in findings)
    if names.path not in columns and names.patient not in columns:
        # Without a header the first study stands for it, and its cells must not be shown.
        raise TableError(
            f"{name} has neither a column {names.path!r} nor {names.patient!r}",
            found=f"{len(columns)} other columns",
            fix="see that its first line names the columns, and set columns.path and columns.patient",
        )
    path = column(columns, names.path, "columns.path", name)
    patient = column(columns, names.patient, "columns.patient", name)
    rows, removed = _kept(columns, path, site)
    headers = bool(_maybe_dicom(path[rows]).any())
    variables = clinical_names(site, columns, headers) if clinical is None else tuple(clinical)
    strata = read_labels(columns, rows, site, annotated)
    age = years(_optional(columns, names, "age", name)[rows])
    sex = _sexes(_optional(columns, names, "sex", name)[rows])
    table = StudyTable(
        findings=wanted,
        variables=variables,
        path=plain_paths(path[rows]),
        patient=patient[rows],
        study=_optional(columns, names, "study", name)[rows],
        view=np.char.upper(_optional(columns, names, "view", name)[rows]),
        age=age,
        sex=sex,
        labels=_select(strata.values, annotated, wanted),
        clinical=read_clinical(columns, rows, site, variables, age, sex),
        annotated=annotated,
        strata=strata.values,
        code=np.full(len(rows), "", dtype="U20"),
        removed=removed,
    )
    conflicts = columns.get(CONFLICT, np.full(len(path), ""))[rows] != ""
    table = replace(table, code=_codes(table, strata.odd, conflicts, site))
    if names.split in columns or "split" in names.model_fields_set:
        split = column(columns, names.split, "columns.split", name)
        named = _splits(split[rows], rows + 1)
        known = (table.code == "") & (table.patient != "")
        check_split(table.patient[known], named[known])
        table = replace(table, split=named)
    _log.info("%s: %d of %d rows usable", name, int((table.code == "").sum()), len(table))
    return table


def _select(values: NDArray[np.float32], have: Sequence[str], want: Sequence[str]) -> NDArray[np.float32]:
    """Return the columns asked for, NaN where there is none."""
    selected = np.full((len(values), len(want)), np.nan, dtype=np.float32)
    for j, finding in enumerate(want):
        if finding in have:
            selected[:, j] = values[:, have.index(finding)]
    return selected


def _optional(columns: Mapping[str, Text], names: ColumnsConfig, key: str, table: str) -> Text:
    """Return a column that may be absent, unless site.toml names it."""
    if getattr(names, key) not in columns and key not in names.model_fields_set:
        return np.full(len(next(iter(columns.values()))), "", dtype=np.str_)
    return column(columns, getattr(names, key), f"columns.{key}", table)


def _sexes(cells: Text) -> Text:
    words = np.char.upper(cells)
    return np.select([np.isin(words, _MALE), np.isin(words, _FEMALE)], ["M", "F"], "")


def _kept(
    columns: Mapping[str, Text], path: Text, site: SiteConfig
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Apply the filters; returns the rows kept and how many each filter removed."""
    name = site.data.source
    keep = np.ones(len(path), dtype=bool)
    removed: dict[str, int] = {}
    for key, values in site.filter.items():
        told = matches(column(columns, key, f"filter.{key}", name), values)
        keep, removed[key] = _narrow(keep, told)
    if site.data.views:
        view = _optional(columns, site.columns, "view", name)
        if not (view != "").any() and not _maybe_dicom(path[keep]).all():
            raise TableError(
                f"{name} does not say which images are {' or '.join(site.data.views)}",
                fix='set columns.view, or data.views = "any" if every image may be used',
            )
    if not keep.any():
        raise TableError(
            f"no row of {name} is left of {len(path)}",
            found=", ".join(f"{key} removed {count}" for key, count in removed.items()),
            fix="widen [filter] in site.toml",
        )
    return np.flatnonzero(keep), removed


def _maybe_dicom(path: Text) -> NDArray[np.bool_]:
    return np.array([PurePosixPath(file).suffix.lower() in _MAYBE_DICOM for file in path], dtype=bool)


def _narrow(keep: NDArray[np.bool_], told: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    return keep & told, int((keep & ~told).sum())


def is_view(view: Text, wanted: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which views are wanted, whatever their case."""
    return np.isin(np.char.upper(view), [name.strip().upper() for name in wanted])


def _splits(cells: Text, number: NDArray[np.int64]) -> Text:
    lowered = np.char.lower(cells)
    unknown = ~np.isin(lowered, list(_SPLIT_NAMES))
    if unknown.any():
        raise SplitError(
            f"{int(unknown.sum())} rows have no split, the first is row {int(number[unknown][0])}",
            fix="write train, validation (val, valid) or test in every row",
        )
    return np.array([_SPLIT_NAMES[str(cell)] for cell in lowered], dtype=np.str_)


def plain_paths(paths: Text) -> Text:
    """Write paths one way, so that ./a.png and a.png are the same file."""
    return np.array([str(PurePosixPath(str(path))) if path else "" for path in paths], dtype=np.str_)


def _codes(table: StudyTable, odd: NDArray[np.bool_], conflicts: NDArray[np.bool_], site: SiteConfig) -> Text:
    """Say which rows cannot be used, as far as the table itself tells; the first reason counts."""
    code = np.full(len(table), "", dtype="U20")
    root = Root(site.data.root)
    code[[not root.holds(str(path)) for path in table.path]] = "path"
    # A DICOM file may say itself whose it is, and which view.
    _mark(code, (table.patient == "") & ~_maybe_dicom(table.path), "no-patient")
    _mark(code, conflicts, "conflict")
    _mark(code, odd, "label-value")
    usable = np.flatnonzero(code == "")
    of_path: dict[str, list[int]] = {}
    for i in usable.tolist():
        of_path.setdefault(str(table.path[i]), []).append(i)
    for same in of_path.values():
        if len(same) > 1:
            code[same] = same_image(table.patient[same], table.strata[same])
    if site.data.views:
        _mark(code, ~is_view(table.view, site.data.views) & (table.view != ""), "view")
    return code


def _mark(code: Text, rows: NDArray[np.bool_], reason: Reason) -> None:
    code[rows & (code == "")] = reason
