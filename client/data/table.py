"""The table of studies: which images a site has, whose they are and what is known of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, column, matches, read_columns, years
from client.data.labels import read_labels
from client.data.split import SPLITS, check_split
from client.site import ColumnsConfig, SiteConfig
from common.errors import SplitError, TableError
from common.findings import canonical

_log = logging.getLogger(__name__)

_SPLIT_NAMES = {name: name for name in SPLITS} | {"val": "validation", "valid": "validation"}
_MAYBE_DICOM = {".dcm", ".dicom", ""}


@dataclass(frozen=True)
class StudyTable:
    """One row per image. ``labels`` is ``[rows, findings]`` with NaN for not annotated."""

    findings: tuple[str, ...]
    path: Text
    patient: Text
    study: Text
    view: Text
    age: NDArray[np.float32]
    sex: Text
    labels: NDArray[np.float32]
    strata: NDArray[np.float32]
    """Labels of everything the site annotates: a split must not change with the findings asked for."""
    split: Text | None = None
    """train, validation or test where the table says so."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Code -> rows left out because they cannot be used."""
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


def read_studies(site: SiteConfig, findings: Sequence[str]) -> StudyTable:
    """Read the rows a site offers for these findings.

    A row whose path leaves ``data.root`` (E_PATH) or that names no patient (E_PATIENT) is left
    out and counted. A finding without a label column is NaN throughout.

    Raises:
        TableError: if the table or a column is missing, an image is listed twice, the view is
            asked for and not known, or the filters leave nothing.
        LabelError: if a label column or a cell of it cannot be used.
        SplitError: if the table's own split is incomplete or shares a patient.
    """
    name = site.data.table.name
    columns = read_columns(site.data.table)
    if not site.data.root.is_dir():
        raise TableError("site.toml: data.root is not a folder", found=str(site.data.root))
    wanted = tuple(canonical(finding) for finding in findings)
    names = site.columns
    path = column(columns, names.path, "columns.path", name)
    patient = column(columns, names.patient, "columns.patient", name)
    view = _optional(columns, names, "view", name)
    rows, removed = _kept(columns, path, view, site)
    table = StudyTable(
        findings=wanted,
        path=path[rows],
        patient=patient[rows],
        study=_optional(columns, names, "study", name)[rows],
        view=view[rows],
        age=years(_optional(columns, names, "age", name)[rows]),
        sex=_sexes(_optional(columns, names, "sex", name)[rows]),
        labels=read_labels(columns, rows, site, wanted),
        strata=read_labels(columns, rows, site, tuple(site.labels)),
        removed=removed,
    )
    number = rows + 1
    if names.split in columns or "split" in names.model_fields_set:
        split = column(columns, names.split, "columns.split", name)
        table = replace(table, split=_splits(split[rows], number))
    table, number = _quarantined(table, number, site.data.root)
    _check_distinct(table.path, number, name)
    if table.split is not None:
        check_split(table.patient, table.split)
    _log.info("%s: %d rows usable, %s removed by filters", name, len(table), dict(table.removed))
    return table


def _optional(columns: Mapping[str, Text], names: ColumnsConfig, key: str, table: str) -> Text:
    """Return a column that may be absent, unless site.toml names it."""
    if getattr(names, key) not in columns and key not in names.model_fields_set:
        return np.full(len(next(iter(columns.values()))), "", dtype=np.str_)
    return column(columns, getattr(names, key), f"columns.{key}", table)


def _sexes(cells: Text) -> Text:
    words = np.char.upper(cells)
    return np.select([np.isin(words, ("M", "MALE")), np.isin(words, ("F", "FEMALE"))], ["M", "F"], "")


def _kept(
    columns: Mapping[str, Text], path: Text, view: Text, site: SiteConfig
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Apply the filters; returns the rows kept and how many each filter removed."""
    name = site.data.table.name
    keep = np.ones(len(path), dtype=bool)
    removed: dict[str, int] = {}
    for key, values in site.filter.items():
        told = matches(column(columns, key, f"filter.{key}", name), values)
        keep, removed[key] = _narrow(keep, told)
    if site.data.views:
        dicom = np.array([PurePosixPath(file).suffix.lower() in _MAYBE_DICOM for file in path])
        if not (view != "").any() and not dicom[keep].all():
            raise TableError(
                f"{name} does not say which images are {' or '.join(site.data.views)}",
                fix='set columns.view, or data.views = "any" if every image may be used',
            )
        # A DICOM file without a view in the table is judged by its own tag once it is read.
        keep, removed["views"] = _narrow(keep, is_view(view, site.data.views) | ((view == "") & dicom))
    if not keep.any():
        raise TableError(
            f"no row of {name} is left of {len(path)}",
            found=", ".join(f"{key} removed {count}" for key, count in removed.items()),
            fix="widen [filter] or data.views in site.toml",
        )
    return np.flatnonzero(keep), removed


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


def _quarantined(
    table: StudyTable, number: NDArray[np.int64], root: Path
) -> tuple[StudyTable, NDArray[np.int64]]:
    inside = np.array([_inside(root.resolve(), str(path)) for path in table.path], dtype=bool)
    known = table.patient != ""
    counts = {"E_PATH": int((~inside).sum()), "E_PATIENT": int((inside & ~known).sum())}
    good = inside & known
    plain = np.array([str(PurePosixPath(str(path))) for path in table.path[good]], dtype=np.str_)
    kept = replace(table.take(good), path=plain, quarantined={code: n for code, n in counts.items() if n})
    return kept, number[good]


def _inside(root: Path, path: str) -> bool:
    """Tell whether a path stays within the root, also after following symbolic links."""
    windows = PureWindowsPath(path)
    if not path or "\0" in path or ".." in windows.parts or windows.drive or windows.root:
        return False
    try:
        return (root / path).resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):
        return False


def _check_distinct(path: Text, number: NDArray[np.int64], name: str) -> None:
    _, first, inverse = np.unique(path, return_index=True, return_inverse=True)
    again = first[inverse] != np.arange(len(path))
    if again.any():
        raise TableError(
            f"{name} lists an image more than once in {int(again.sum())} rows, "
            f"the first is row {int(number[again][0])}",
            fix="one row per image: merge rows that differ only in their labels",
        )
