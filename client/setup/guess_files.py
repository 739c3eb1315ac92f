"""Look at a folder without reading an image: what lies there, and where a table's paths lead."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from client.data.columns import Text

MOST_ENTRIES = 20_000
"""Files and folders looked at; what lies beyond is not guessed at."""
MOST_PER_FOLDER = 5_000
"""Of a folder below the first, so that one full of images does not hide its neighbours."""
PICTURES = {".png", ".jpg", ".jpeg"}

_DICOM = {".dcm", ".dicom"}
_SAMPLE = 60
_MOST_ROOTS = 200


@dataclass(frozen=True)
class Tree:
    """What lies under a folder, as far as was looked. Paths are relative to it, with '/'."""

    files: tuple[str, ...]
    folders: tuple[str, ...]
    whole: bool
    """False if there is more than was looked at."""


class Located(NamedTuple):
    """The column of a table that names image files, and where they are."""

    column: str
    root: str
    """Folder the paths start in."""
    share: float
    """Of a sample of the files, those that are there."""


def look(folder: Path) -> Tree:
    """List what lies under a folder, breadth first; links out of it and hidden names are passed over."""
    files: list[str] = []
    folders: list[str] = []
    whole, left = True, MOST_ENTRIES
    queue = deque([""])
    home = folder.resolve()
    while queue and left > 0:
        here = queue.popleft()
        share = left if not here else min(left, MOST_PER_FOLDER)
        try:
            with os.scandir(folder / here) as entries:
                for entry in entries:
                    if share == 0:
                        whole = False
                        break
                    share, left = share - 1, left - 1
                    name = f"{here}/{entry.name}" if here else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                        queue.append(name)
                    elif entry.is_file() and _inside(home, entry):
                        files.append(name)
        except OSError:
            whole = False
    return Tree(tuple(sorted(files)), tuple(sorted(folders)), whole and not queue)


def _inside(home: Path, entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(home)
    except (OSError, RuntimeError):
        return False


def holds_dicom(folder: Path, tree: Tree) -> bool:
    """Tell whether there are DICOM files, by suffix or by what the first files without one begin with."""
    if any(PurePosixPath(file).suffix.lower() in _DICOM for file in tree.files):
        return True
    bare = [file for file in tree.files if "." not in PurePosixPath(file).name]
    return any(_begins_like_dicom(folder / file) for file in bare[:20])


def _begins_like_dicom(path: Path) -> bool:
    """Tell whether the preamble of PS3.10 7.1 is there: 128 bytes, then DICM."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return False


def locate(folder: Path, tree: Tree, columns: Mapping[str, Text]) -> Located:
    """Find the column of image paths and where they start; '' if no column looks like paths."""
    best = Located("", ".", 0.0)
    for name, cells in columns.items():
        filled = cells[cells != ""]
        sample = [str(cell) for cell in filled[:: max(1, len(filled) // _SAMPLE)][:_SAMPLE]]
        if not sample:
            continue
        suffixes = [PurePosixPath(cell).suffix.lower() in PICTURES | _DICOM for cell in sample]
        like_paths = sum(suffixes) > 0.9 * len(sample)
        if not like_paths and not _bare_files(tree, sample):
            continue
        root, share = _root(folder, tree, sample)
        if share > best.share or not best.column:
            best = Located(name, root, share)
    return best


def _bare_files(tree: Tree, sample: Iterable[str]) -> bool:
    """Tell whether the cells name files without a suffix, as DICOM exports have them."""
    bare = {PurePosixPath(file).name for file in tree.files if "." not in PurePosixPath(file).name}
    return bool(bare) and all(PurePosixPath(cell).name in bare for cell in sample)


def _root(folder: Path, tree: Tree, sample: list[str]) -> tuple[str, float]:
    """Find the folder under which most of these paths are files."""
    of_name: dict[str, list[str]] = {}
    for file in tree.files:
        of_name.setdefault(PurePosixPath(file).name, []).append(file)
    votes: Counter[str] = Counter()
    for cell in sample:
        for file in of_name.get(PurePosixPath(cell).name, []):
            if file == cell:
                votes["."] += 1
            elif file.endswith(f"/{cell}"):
                votes[file.removesuffix(f"/{cell}")] += 1
    # Folders too full to have been listed are tried by name.
    candidates = [root for root, _ in votes.most_common(5)] + [".", *tree.folders[:_MOST_ROOTS]]
    best = (".", 0.0)
    for root in dict.fromkeys(candidates):
        share = sum(_is_file(folder / root, cell) for cell in sample) / len(sample)
        if share > best[1]:
            best = (root, share)
        if share > 0.95:
            break
    return best


def _is_file(root: Path, cell: str) -> bool:
    path = PurePosixPath(cell)
    if path.is_absolute() or ".." in path.parts or "\0" in cell:
        return False
    try:
        return (root / path).is_file()
    except (OSError, ValueError):
        return False


def name_files(tree: Tree, cells: Text) -> bool:
    """Tell whether the cells are names of files that lie somewhere under the folder."""
    there = {PurePosixPath(file).name for file in tree.files}
    sample = [str(cell) for cell in cells[cells != ""][:_SAMPLE]]
    return bool(sample) and sum(cell in there for cell in sample) > 0.5 * len(sample)
