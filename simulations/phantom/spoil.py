"""Spoiling a site: beside its sound studies, one or more for everything that can be wrong with one."""

from __future__ import annotations

import csv
import io
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tomli_w

from simulations.phantom.spoil_dicom import dicom_files
from simulations.phantom.spoil_pictures import pictures, png
from simulations.phantom.spoil_rows import SINGLE_CLASS, UNSURE, rows
from simulations.phantom.spoil_sites import write_broken
from simulations.phantom.spoiled import PLANTED, Spoiled, draw_studies

LEAST_SOUND = 150
"""Studies of the site below which less than 60 % of all rows would be usable."""
LEAST_SIDE = 64
"""Side of the images below which JPEG 2000 does not halve them often enough."""
_PHANTOMS = 120
"""Pictures the catalogue may draw."""

Row = Mapping[str, str]


def spoiled_studies(*, seed: int, size: int) -> list[Spoiled]:
    """Return the whole catalogue, in the order of the table; the same arguments, the same bytes."""
    studies = iter(draw_studies(_PHANTOMS, seed=seed, size=size))
    return [*dicom_files(studies), *pictures(studies), *rows(studies)]


def spoil_site(folder: Path, *, seed: int, size: int) -> Path:
    """Add the catalogue of bad input to a site that `write_site` has just written.

    Adds to its table and images; rewrites ``site.toml``, whose path it returns; and writes
    ``spoiled.csv`` (path, expected code; an odd but sound study has none), ``outside`` with an
    image that no row may reach, and ``broken`` with sites that cannot be used at all.
    """
    images = folder / "images"
    spoiled = spoiled_studies(seed=seed + 1, size=size)
    _clear(images / part for part in ("dicom", "pictures", "rows", "names", "cells", "repeated", "store"))
    _clear([folder / "outside", folder / "broken"])
    (folder / "outside").mkdir()
    (secret,) = draw_studies(1, seed=seed + 2, size=size)
    (folder / "outside" / "secret.png").write_bytes(png(secret.pixels))
    for study in spoiled:
        _write(images, study)
    table = folder / "studies.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        sound: list[Row] = [
            row | {"path": row["path"].removeprefix("images/"), SINGLE_CLASS: "0"}
            for row in csv.DictReader(file)
        ]
    added = [{**study.study.cells, SINGLE_CLASS: "0", **study.cells, "path": study.path} for study in spoiled]
    # With a byte order mark, as spreadsheets save UTF-8.
    table.write_bytes(b"\xef\xbb\xbf" + _csv(list(sound[0]), [*sound, *added]))
    codes = [{"path": study.path, "code": study.code} for study in spoiled]
    (folder / "spoiled.csv").write_bytes(_csv(["path", "code"], codes))
    write_broken(folder / "broken", sound[:12])
    return _describe(folder / "site.toml")


def _clear(folders: Iterable[Path]) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _write(images: Path, study: Spoiled) -> None:
    if study.content is None:
        return
    path = images / study.path
    path.parent.mkdir(exist_ok=True)
    if isinstance(study.content, bytes):
        path.write_bytes(study.content)
    else:
        study.content(path)


def _csv(columns: Sequence[str], rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _describe(site: Path) -> Path:
    settings = tomllib.loads(site.read_text(encoding="utf-8"))
    settings["data"] |= {"root": "images", "burned_in": "require-no", "max_quarantined": 0.4}
    settings["labels"][SINGLE_CLASS] = SINGLE_CLASS
    settings["uncertainty"] = {UNSURE: "ignore"}
    comment = (
        "# A simulated site with bad input: spoiled.csv says which code each spoiled study must get.\n"
        f"# Every picture is a phantom, and no patient is called {PLANTED}.\n"
    )
    site.write_text(comment + tomli_w.dumps(settings), encoding="utf-8")
    return site
