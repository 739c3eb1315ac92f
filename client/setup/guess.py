"""Guess the site.toml of a folder: which table, where its images lie, what its columns mean."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
import pandas as pd

from client.data.columns import Text, fixed_width, read_columns
from client.data.public import chexpert, padchest
from client.review.words import counted
from client.setup import guess_columns
from client.setup.guess_columns import LabelGuess
from client.setup.guess_files import MOST_ENTRIES, PICTURES, Tree, holds_dicom, locate, look, name_files
from client.site import Join
from common.errors import ConfigError, TableError
from common.findings import suggest

_TABLES = (".csv", ".csv.gz", ".parquet", ".pq")
_SPREADSHEETS = {".xlsx", ".xls", ".ods"}
_OURS = "index/index.parquet"
_HEAD = 200
_MOST_TABLES = 20

_PUBLISHED: Mapping[str, str] = {
    "data_entry_2017_v2020.csv": "nih",
    "data_entry_2017.csv": "nih",
    "mimic-cxr-2.0.0-metadata.csv": "mimic",
    padchest.TABLE.lower(): "padchest",
    "image_labels_train.csv": "vindr",
    "stage_2_train_labels.csv": "rsna",
    "train-rle.csv": "siim",
    "nlmcxr_reports.tgz": "openi",
}
"""File that only one public set has -> layout."""
_TELLING: Mapping[str, tuple[str, set[str]]] = {
    "chexpert": ("train.csv", {"Path", "Frontal/Lateral"}),
    "vindr": ("train.csv", {"image_id", "class_name", "rad_id"}),
    "covid": ("metadata.csv", {"patientid", "offset", "survival", "filename", "clinical_notes"}),
}
"""Layout -> a file of a common name, and columns that tell it from others of that name."""


@dataclass(frozen=True)
class Guess:
    """What a folder seems to hold; '' and empty where there is no guess."""

    folder: Path
    tree: Tree
    name: str
    layout: str
    tables: tuple[str, ...]
    """Every table that could be read, the likeliest first."""
    table: str = ""
    headers: tuple[str, ...] = ()
    """The table's columns."""
    root: str = "."
    located: bool = False
    """Whether files that the table names lie under the root."""
    join: str = ""
    """How a folder's files and its table are joined."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role in ``[columns]`` -> column."""
    views: tuple[str, ...] = ()
    """Spellings of frontal views; none if the table does not tell views."""
    labels: tuple[LabelGuess, ...] = ()
    clinical: Mapping[str, str] = field(default_factory=dict)
    uncertain: tuple[str, ...] = ()
    """Findings that a public set labels -1 somewhere."""
    dicom: bool = False
    """Whether there are DICOM files."""
    pictures: bool = False
    """Whether the table names PNG or JPEG files, which do not tell their view."""
    remarks: tuple[str, ...] = ()
    """What a person should know, naming no cell of a table and no image."""

    @property
    def public(self) -> bool:
        """Tell whether the layout is a public set's, which needs no columns and no labels."""
        return self.layout not in ("table", "folder")


def guess_site(folder: Path) -> Guess:
    """Look at a folder and guess what its site.toml should say.

    Raises:
        ConfigError: if it is not a folder, or holds neither images nor a table.
        TableError: if the only likely table cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder", found=str(folder), fix="name the folder of the studies")
    tree = look(folder)
    remarks = []
    if not tree.whole:
        remarks.append(f"only the first {MOST_ENTRIES:,} files were looked at")
    if sheets := [file for file in tree.files if PurePosixPath(file).suffix.lower() in _SPREADSHEETS]:
        remarks.append(
            f"{counted(len(sheets), 'spreadsheet')} not read: save the table as CSV UTF-8 with commas"
        )
    dicom = holds_dicom(folder, tree)
    guess = Guess(folder, tree, _site_name(folder), "folder", (), dicom=dicom)
    heads, refused = _heads(folder, tree)
    ranked = sorted(heads, key=lambda name: _rank(folder, tree, name, heads[name]), reverse=True)
    guess = replace(guess, tables=tuple(ranked), remarks=tuple(remarks))
    if public := _published(tree, heads):
        return as_layout(replace(guess, root=public[1]), public[0])
    guess = replace(guess, remarks=(*remarks, *refused))
    if not heads and not dicom:
        pictures = any(PurePosixPath(file).suffix.lower() in PICTURES for file in tree.files)
        raise ConfigError(
            "the folder holds no table to read" + ("" if pictures else " and no DICOM file"),
            found="; ".join([*refused, *remarks]) or f"{len(tree.files)} files",
            fix="add a CSV (UTF-8, commas) with a row per image: path, patient and labels",
        )
    return with_table(guess, ranked[0]) if ranked else guess


def with_table(guess: Guess, table: str) -> Guess:
    """Guess again, with another table of the folder.

    Raises:
        TableError: if it cannot be read.
    """
    columns = {n: fixed_width(cells) for n, cells in read_columns(guess.folder / table).items()}
    if guess_columns.headerless(list(columns)):
        raise TableError(f"{table} has no header row", fix="write the columns' names into its first row")
    path, root, share = locate(guess.folder, guess.tree, columns)
    others = {name: cells for name, cells in columns.items() if name != path}
    found, remarks = guess_columns.roles(others)
    rest = {name: cells for name, cells in others.items() if name not in found.values()}
    labels, of_labels = guess_columns.labels(rest)
    clinical, of_clinical = guess_columns.clinical(rest)
    before = guess
    guess = replace(
        guess,
        layout="table",
        table=table,
        headers=tuple(columns),
        views=guess_columns.frontal(columns[found["view"]]) if "view" in found else (),
        labels=tuple(labels),
        clinical=clinical,
        remarks=(*guess.remarks, *remarks, *of_labels, *of_clinical),
    )
    if path and share > 0 and not (share < 0.5 and name_files(guess.tree, columns[path])):
        found = {"path": path} | {role: name for role, name in found.items() if role != "instance"}
        if "study" not in found and "accession" in found:
            found["study"] = found["accession"]
        found.pop("accession", None)
        pictures = any(PurePosixPath(str(cell)).suffix.lower() in PICTURES for cell in columns[path])
        guess = replace(guess, pictures=pictures)
        if share < 1:
            why = f"{_percent(1 - share)} of the files that {path!r} names are not there"
            guess = replace(guess, remarks=(*guess.remarks, why))
        return replace(guess, root=root, located=True, columns=found)
    guess = _joined(guess, columns, found, path)
    if guess.dicom and guess.layout == "table" and not path:
        why = f"{table} names neither image files nor studies, accession numbers or patients: not used"
        return replace(before, layout="folder", remarks=(*before.remarks, why))
    return guess


def as_layout(guess: Guess, layout: str) -> Guess:
    """Return the guess for another layout; a public set's brings its own tables and labels."""
    if layout == guess.layout:
        return guess
    guess = replace(guess, layout=layout, join="", uncertain=())
    if not guess.public:
        return guess
    uncertain = tuple(chexpert.LABELS) if layout in ("chexpert", "mimic") else ()
    return replace(
        guess, table="", headers=(), columns={}, views=(), labels=(), clinical={}, uncertain=uncertain
    )


def _site_name(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")[:32]
    return name or "site"


def _heads(folder: Path, tree: Tree) -> tuple[dict[str, dict[str, Text]], list[str]]:
    """Read the first rows of every table; also say which could not be read and why."""
    heads: dict[str, dict[str, Text]] = {}
    refused = []
    names = [file for file in tree.files if file.lower().endswith(_TABLES) and not file.endswith(_OURS)]
    for name in sorted(names, key=lambda file: (file.count("/"), file))[:_MOST_TABLES]:
        try:
            head = _head(folder / name)
        except (OSError, ValueError, EOFError, zlib.error):  # pandas' and pyarrow's errors are ValueErrors
            refused.append(f"{name} is not a CSV in UTF-8 with commas, nor Parquet")
            continue
        if len(head) == 1 and re.search(r"[;\t|]", next(iter(head))):
            refused.append(f"{name} is not separated by commas")
        elif guess_columns.headerless(list(head)):
            refused.append(f"{name} has no header row")
        elif head:
            heads[name] = head
    return heads, refused


def _head(path: Path) -> dict[str, Text]:
    if path.suffix.lower() in (".parquet", ".pq"):
        from pyarrow.parquet import ParquetFile

        batch = next(ParquetFile(path).iter_batches(batch_size=_HEAD), None)
        frame = pd.DataFrame() if batch is None else batch.to_pandas()
        names = [str(name) for name in frame.columns]
        whole = frame.astype(object).where(frame.notna(), "")
        cells = [whole.iloc[:, i] for i in range(len(names))]
    else:
        frame = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=_HEAD
        )
        names = [str(name).strip() for name in frame.iloc[0]]
        cells = [frame[i].iloc[1:] for i in frame.columns]
    return {
        name: np.array([str(cell).strip() for cell in column], dtype=np.str_)
        for name, column in zip(names, cells, strict=True)
        if name
    }


def _published(tree: Tree, heads: Mapping[str, Mapping[str, Text]]) -> tuple[str, str] | None:
    """Recognise a public set by a file only it has; returns its layout and folder."""
    for file in sorted(tree.files, key=lambda name: (name.count("/"), name)):
        path = PurePosixPath(file)
        name = path.name.lower().removesuffix(".gz")
        folder = path.parent.parent if path.parent.name == "annotations" else path.parent
        if name in _PUBLISHED:
            return _PUBLISHED[name], str(folder)
        for layout, (known, columns) in _TELLING.items():
            if name == known and columns <= set(heads.get(file, {})):
                return layout, str(path.parent)
    for name in tree.folders:
        if PurePosixPath(name).name == "ecgen-radiology":
            return "openi", str(PurePosixPath(name).parent)
    return None


def _rank(folder: Path, tree: Tree, name: str, head: dict[str, Text]) -> tuple[float, ...]:
    path, _, share = locate(folder, tree, head)
    roles = guess_columns.by_name(head)
    named = len(suggest(head)) + ("patient" in roles)
    return (share > 0, bool(path), named, (folder / name).stat().st_size, -name.count("/"))


def _joined(guess: Guess, columns: Mapping[str, Text], found: dict[str, str], path: str) -> Guess:
    """Take the table for the labels of a folder of files, which it names by something they share."""
    remarks = list(guess.remarks)
    cells = columns[path] if path else np.array([], dtype=np.str_)
    if any("\\" in str(cell) for cell in cells[:100]):
        remarks.append(f"column {path!r} writes paths with \\: replace it by /")
    elif any(str(cell).startswith("/") for cell in cells[:100]):
        remarks.append(f"column {path!r} holds absolute paths: write them relative to a folder of images")
    elif path and name_files(guess.tree, cells):
        return replace(
            guess, layout="folder", join="file", columns=found | {"file": path}, remarks=tuple(remarks)
        )
    elif path:
        remarks.append(f"none of the files that column {path!r} names is there")
    shared = [join for join in get_args(Join) if join in found]
    if guess.dicom and shared:
        order = ("instance", "accession", "study", "patient")
        join = next(key for key in order if key in shared)
        return replace(guess, layout="folder", join=join, columns=found, remarks=tuple(remarks))
    if path:
        found = {"path": path} | found
    return replace(guess, columns=found, remarks=tuple(remarks))


def _percent(share: float) -> str:
    return f"{max(1, round(100 * share))} %"
