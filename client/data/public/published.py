"""What the readers of public sets share: their tables, their pictures' places, cells spelled one way."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, listing, read_frame, years
from client.data.split import split_by_patient
from common.errors import TableError

_log = logging.getLogger(__name__)

OLDEST = 120
"""Years above which a published age is a slip of the pen: NIH and RSNA list ages up to 414."""


def table_of(root: Path, layout: str, *names: str) -> Path:
    """Return the first of these tables that lies in the folder, packed (.gz) or not.

    Raises:
        TableError: if none does.
    """
    if found := optional_table(root, *names):
        return found
    raise not_there(root, layout, f"{' or '.join(names)} (or .gz)")


def optional_table(root: Path, *names: str) -> Path | None:
    """Return the first of these tables that lies in the folder, packed (.gz) or not, or None."""
    tried = (root / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in tried if path.is_file()), None)


def not_there(root: Path, layout: str, needed: str) -> TableError:
    """Say what a layout needs and what lies in the folder instead."""
    try:
        there = sorted(path.name for path in root.iterdir())
    except OSError:
        there = []
    return TableError(
        f"the {layout} layout needs {needed} in data.root",
        found=listing(dict.fromkeys(there)) or "an empty or missing folder",
        fix=f"set data.root to the folder the {layout} set was unpacked in; see docs/public-sets.md",
    )


def shipped(root: Path, name: str) -> Path | None:
    """Find a table that torchxrayvision ships for a set: beside the data, else in that package.

    The package is located, never imported: importing it takes seconds and needs torchvision.
    """
    if (root / name).is_file():
        return root / name
    spec = importlib.util.find_spec("torchxrayvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / "data" / name).is_file():
            return path
    return None


def read_table(
    path: Path,
    layout: str,
    needed: Sequence[str],
    optional: Iterable[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> dict[str, Text]:
    """Read some columns of a published CSV as stripped text; an empty cell is ''.

    Unlike `read_columns` it does not lay out columns nobody asked for: a fixed-width array of
    PadChest's reports alone would take a gigabyte.

    Args:
        optional: columns read where the table has them; "*" for all.
        renamed: spelling in another release -> the name used here.

    Raises:
        TableError: if the file is damaged, is no CSV in UTF-8, has no rows, has a row with more
            fields than the header, or lacks a needed column. No cell is shown.
    """
    frame = read_frame(path, f"{path.name} of the {layout} layout", "download it again")
    first = [str(name).strip() for name in frame.iloc[0]]
    # A set's own trailing comma makes a column without a name; a repeated name cannot be told apart.
    index = {(renamed or {}).get(name, name): i for i, name in reversed(list(enumerate(first))) if name}
    missing = [name for name in needed if name not in index]
    if missing:
        raise TableError(
            f"{path.name} is not the {layout} layout's: it lacks {listing(dict.fromkeys(missing))}",
            found=listing(dict.fromkeys(name for name in first if name)) or "no header",
            fix="put the published table there, unchanged",
        )
    if len(frame) == 1:
        raise TableError(f"{path.name} has no rows", fix="download it again")
    extra = list(index) if "*" in (chosen := list(optional)) else [name for name in chosen if name in index]
    wanted = dict.fromkeys([*needed, *extra])
    return {name: text(frame[index[name]].iloc[1:].str.strip()) for name in wanted}


def text(cells: Iterable[object]) -> Text:
    """Lay cells out as an array of text."""
    return np.array([str(cell) for cell in cells], dtype=np.str_)


def empty(rows: int) -> Text:
    """Return a column that says nothing."""
    return np.full(rows, "", dtype=np.str_)


def flags(present: NDArray[np.bool_], known: NDArray[np.bool_] | None = None) -> Text:
    """Write 1 where a finding is present, 0 where it is not, '' where nobody looked.

    >>> flags(np.array([True, False, False]), np.array([True, True, False])).tolist()
    ['1', '0', '']
    """
    cells = np.where(present, "1", "0")
    return cells if known is None else np.where(known, cells, "")


def marks(cells: Text) -> Text:
    """Write labels as 1, 0, -1 and '', leaving any other cell for the reader of labels to count.

    >>> marks(np.array(["1.0", "-1.0", "", "?"])).tolist()
    ['1', '-1', '', '?']
    """
    usual = [np.isin(cells, spelled) for spelled in (("1.0", "1"), ("0.0", "0"), ("-1.0", "-1"))]
    return np.select(usual, ["1", "0", "-1"], cells)


def yes_no(cells: Text) -> Text:
    """Write Y as 1, N as 0, anything else as ''.

    >>> yes_no(np.array(["Y", "n", "Unclear", ""])).tolist()
    ['1', '0', '', '']
    """
    words = np.char.upper(cells)
    return np.select([np.isin(words, ("Y", "YES")), np.isin(words, ("N", "NO"))], ["1", "0"], "")


def ages(cells: Text) -> Text:
    """Keep ages between 0 and `OLDEST` as written.

    >>> ages(np.array(["058Y", "411", "61"])).tolist()
    ['058Y', '', '61']
    """
    return np.where(years(cells) <= OLDEST, cells, "")


def sexes(cells: Text) -> Text:
    """Write M, F or ''.

    >>> sexes(np.array(["Female", "m", "O"])).tolist()
    ['F', 'M', '']
    """
    words = np.char.upper(cells)
    return np.select([np.isin(words, ("M", "MALE")), np.isin(words, ("F", "FEMALE"))], ["M", "F"], "")


_VIEWS = {
    "AP_HORIZONTAL": "AP SUPINE",
    "LATERAL": "L",
    "LARGE LATERAL": "L",
    "UNK": "",
    "UNKNOWN": "",
    "NAN": "",
}


def views(cells: Text) -> Text:
    """Write views the way DICOM's View Position does, upper case, and L for any lateral.

    >>> views(np.array(["AP_horizontal", "LATERAL", "pa", ""])).tolist()
    ['AP SUPINE', 'L', 'PA', '']
    """
    kinds, row_of = np.unique(np.char.upper(cells), return_inverse=True)
    return text(_VIEWS.get(str(kind), str(kind)) for kind in kinds)[row_of]


def held_out_validation(patient: Text, test: NDArray[np.bool_], share: float) -> Text:
    """Complete a published test split: ``share`` of the other patients become validation.

    The draw depends on the patients alone, so two sites with the same set hold out the same.
    """
    split = np.full(len(patient), "test", dtype="U10")
    if not test.all():
        split[~test] = split_by_patient(patient[~test], (1 - share, share, 0.0), seed=0)
    return split


def files_under(root: Path, *patterns: str) -> dict[str, str]:
    """Map the stem of every file in the folders that match to its path relative to the root.

    The patterns are ``glob`` patterns of files. A stem found twice keeps its first place.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            found.setdefault(path.stem, path.relative_to(root).as_posix())
    return found


def placed(names: Iterable[str], files: Mapping[str, str], otherwise: str) -> Text:
    """Return where each named picture lies, or the place it should lie (``otherwise``, a format)."""
    return text(files.get(name) or otherwise.format(name) for name in names)


def no_patients(layout: str, remedy: str = "") -> None:
    """Say in the log that a set does not tell its patients apart."""
    _log.warning(
        "the %s layout does not say whose an image is: each counts as a patient of its own, and one "
        "person may stand in two splits%s",
        layout,
        f"; {remedy}" if remedy else "",
    )
