"""A CSV or Parquet table as columns of text, and what text means: numbers, choices, ages.

Messages name the table, its columns and row numbers (the first row below the header is 1),
never a cell: a cell may hold a patient's name.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import TableError, closest

Text = NDArray[np.str_]
NUL = "\N{SYMBOL FOR NULL}"
"""What a NUL in a cell is read as."""
_LONG = 256
"""Characters from which a column counts as free text, kept as objects: fixed width would waste memory."""


def read_columns(path: Path) -> dict[str, Text]:
    """Read every column as stripped text; an empty cell is ''.

    Text, because pandas would guess types by content: a patient 007 would become 7.0.

    Raises:
        TableError: if the file is missing, is not CSV (UTF-8) or Parquet, has no rows, repeats
            a column name, or has a row with more fields than the header.
    """
    if not path.is_file():
        raise TableError(f"there is no table {path.name}", found=str(path), fix="set data.table in site.toml")
    if path.suffix.lower() in {".parquet", ".pq"}:
        try:
            columns = _parquet(path)
        except (OSError, ValueError) as error:
            raise TableError(f"{path.name} cannot be read", found=type(error).__name__) from None
    else:
        columns = _csv(path)
    if not columns or not len(next(iter(columns.values()))):
        raise TableError(f"{path.name} has no rows", fix="export it again, or name another table")
    return columns


def read_frame(path: Path, name: str, fix: str) -> pd.DataFrame:
    """Read a CSV, also a compressed one, as text; its header is the first row.

    Without a header of its own, for with one pandas takes a surplus first column for an index and
    so shifts every label by one column; without one the surplus is an error.

    Raises:
        TableError: if it is damaged, empty, no UTF-8, or a row has more fields than the first.
    """
    try:
        return pd.read_csv(path, header=None, dtype=str, na_filter=False, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TableError(f"{name} is not UTF-8 text", fix=f"save it as CSV UTF-8, or {fix}") from None
    except pd.errors.EmptyDataError:
        raise TableError(f"{name} has no rows", fix=fix) from None
    except pd.errors.ParserError as error:
        line = re.search(r"(?:line|row) \d+", str(error))
        raise TableError(
            f"{name} is not a regular table" + (f" at {line[0]}" if line else ""),
            fix=f"a line has more fields than the header or a quote is left open: {fix}",
        ) from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise TableError(
            f"{name} cannot be read", found=type(error).__name__, fix=f"check its rights, or {fix}"
        ) from None


def _csv(path: Path) -> dict[str, Text]:
    frame = read_frame(path, path.name, "export it again")
    names = [str(name).strip() for name in frame.iloc[0]]
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise TableError(f"{path.name} is not separated by commas", fix="save the table as CSV with commas")
    return _distinct(path, names, [_strip(frame[i].iloc[1:]) for i in frame.columns])


def _parquet(path: Path) -> dict[str, Text]:
    frame = pd.read_parquet(path)
    names = [str(name) for name in frame.columns]
    return _distinct(path, names, [_strip(_as_text(frame.iloc[:, i])) for i in range(len(names))])


def _as_text(column: pd.Series) -> pd.Series:
    present = column.notna()
    if pd.api.types.is_bool_dtype(column.dtype):
        column = column.astype("Int64")
    elif pd.api.types.is_float_dtype(column.dtype):
        # An integer column with gaps is stored as floats: 12.0 is the patient 12.
        whole = column[present]
        if np.isfinite(whole).all() and (whole == np.floor(whole)).all() and (abs(whole) < 2**53).all():
            column = column.astype("Int64")
    return column.astype(object).where(present, "").astype(str)


def _strip(column: pd.Series) -> Text:
    # NumPy drops a trailing NUL and would so make of a hostile path a good one: its picture stays.
    cells = [str(cell).strip().replace("\0", NUL) for cell in column]
    return np.array(cells, dtype=object if max(map(len, cells), default=0) > _LONG else np.str_)


def _distinct(path: Path, names: Sequence[str], columns: Sequence[Text]) -> dict[str, Text]:
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise TableError(f"{path.name} has more than one column {repeated[0]!r}", fix="rename one of them")
    return {name: column for name, column in zip(names, columns, strict=True) if name}


def listing(columns: Mapping[str, object]) -> str:
    """Name the first three columns and count the rest.

    >>> listing(dict.fromkeys("abcde"))
    "'a', 'b', 'c' (+2)"
    """
    names = [repr(name) for name in columns]
    return ", ".join(names[:3]) + (f" (+{len(names) - 3})" if len(names) > 3 else "")


def column(columns: Mapping[str, Text], name: str, key: str, table: str) -> Text:
    """Return one column as fixed-width text; of reports, which that would cut, see `free_text`.

    Raises:
        TableError: if the table has no such column; says which key of site.toml asked for it.
    """
    return fixed_width(free_text(columns, name, key, table))


def free_text(columns: Mapping[str, Text], name: str, key: str, table: str) -> Text:
    """Return one column of text of any length.

    Raises:
        TableError: as `column`.
    """
    if name not in columns:
        raise TableError(
            f"site.toml: column {name!r} ({key}) is not in {table}",
            found=listing(columns),
            fix=closest(name, columns) or f"set {key} to a column of the table",
        )
    return columns[name]


def fixed_width(cells: Text) -> Text:
    """Return free text as fixed-width text, cut where no name, number or path of anything goes on."""
    if cells.dtype != object:
        return cells
    return np.array([cell[: 2 * _LONG] for cell in cells], dtype=np.str_)


def numbers(cells: Text) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Read cells as numbers; empty and NaN are NaN. Also tell which cells are neither.

    >>> numbers(np.array(["1", "", "x"]))
    (array([ 1., nan, nan]), array([False, False,  True]))
    """
    cells = fixed_width(cells)
    empty = (cells == "") | (np.char.lower(cells) == "nan")
    words = pd.Series(np.where(empty, "nan", cells), dtype=object)
    values = pd.to_numeric(words, errors="coerce").to_numpy(np.float64, copy=True)
    return values, np.isnan(values) & ~empty


def matches(cells: Text, wanted: Sequence[str | int | float]) -> NDArray[np.bool_]:
    """Tell which cells equal one of the values, words as written and numbers by value.

    >>> matches(np.array(["1.0", "one", "2"]), [1, "one"])
    array([ True,  True, False])
    """
    hit = np.isin(cells, [value.strip() for value in wanted if isinstance(value, str)])
    if amounts := [float(value) for value in wanted if not isinstance(value, str)]:
        hit |= np.isin(numbers(cells)[0], amounts)
    return hit


_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}


def years(cells: Text) -> NDArray[np.float32]:
    """Read ages: plain years, or a DICOM Age String (PS3.5 6.2, VR AS: nnnD, nnnW, nnnM, nnnY).

    >>> years(np.array(["61", "006M", "1-5y"]))
    array([61. ,  0.5,  nan], dtype=float32)
    """
    ages, _ = numbers(cells)
    for i in np.flatnonzero(np.isnan(ages) & (cells != "")):
        if written := re.fullmatch(r"(\d{1,3})([YMWD])", str(cells[i]).upper()):
            ages[i] = int(written[1]) / _PER_YEAR[written[2]]
    ages[~((ages >= 0) & (ages < 130))] = np.nan
    return ages.astype(np.float32)
