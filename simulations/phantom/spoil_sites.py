"""Sites that cannot be used at all: each is a folder with a ``site.toml`` and, mostly, a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from simulations.phantom.spoiled import PLANTED

Rows = Sequence[Mapping[str, str]]
Table = Callable[[Rows], bytes]

_SOUND_TOML = """name = "broken"

[data]
table = "studies.csv"
root = "../../images"

[labels]
edema = "edema"
"""
_COLUMNS = ("path", "patient", "view", "edema")


def write_broken(folder: Path, rows: Rows) -> None:
    """Write a folder per case into ``folder``, and ``expected.csv``: the case and its error code.

    ``rows`` are sound rows of the site that ``folder`` lies in; the cases share their images.
    """
    sound = [dict(row) | {"patient": f"{PLANTED}-{i % 4}"} for i, row in enumerate(rows)]
    for case, (_, toml, table) in BROKEN.items():
        here = folder / case
        here.mkdir(parents=True, exist_ok=True)
        (here / "site.toml").write_bytes(toml)
        (here / "note.txt").write_text(f"About {PLANTED}. No image.\n", encoding="utf-8")
        if table is not None:
            (here / "studies.csv").write_bytes(table(sound))
    lines = ["case,code", *(f"{case},{code}" for case, (code, _, _) in BROKEN.items())]
    (folder / "expected.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(rows: Rows, columns: Sequence[str] = _COLUMNS, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in rows)
    return text.getvalue().encode()


def _toml(old: str = "", new: str = "") -> bytes:
    return _SOUND_TOML.replace(old, new, 1).encode()


def _edited(old: str, new: str) -> Table:
    """Change the sound table's text wherever it says ``old``."""
    return lambda rows: _table(rows).decode().replace(old, new).encode()


def _with(column: str, cells: Sequence[str]) -> Table:
    """Fill one column, again and again with the same cells."""

    def build(rows: Rows) -> bytes:
        names = _COLUMNS if column in _COLUMNS else (*_COLUMNS, column)
        return _table([dict(row) | {column: cells[i % len(cells)]} for i, row in enumerate(rows)], names)

    return build


def _bytes(content: bytes) -> Table:
    return lambda _: content


_HEAD = ",".join(_COLUMNS)
_SOUND = _toml()

BROKEN: Mapping[str, tuple[str, bytes, Table | None]] = {
    "not-toml": ("E_CONFIG", b"name: broken\ndata:\n  table: studies.csv\n", _table),
    "toml-in-utf-16": ("E_CONFIG", _SOUND.decode().encode("utf-16"), _table),
    "unknown-key": ("E_CONFIG", _toml("root =", 'rooot = "x"\nroot ='), _table),
    "missing-key": ("E_CONFIG", _toml('name = "broken"\n', ""), _table),
    "wrong-type": ("E_CONFIG", _toml("root =", 'max_quarantined = "many"\nroot ='), _table),
    "nan-number": ("E_CONFIG", _toml("root =", "max_quarantined = nan\nroot ="), _table),
    "unknown-finding": ("E_CONFIG", _toml("edema =", "edemma ="), _table),
    "no-table": ("E_TABLE", _SOUND, None),
    "table-is-a-folder": ("E_TABLE", _toml("studies.csv", "."), None),
    "root-is-a-file": ("E_TABLE", _toml("../../images", "studies.csv"), _table),
    "empty-table": ("E_TABLE", _SOUND, _bytes(b"")),
    "header-only": ("E_TABLE", _SOUND, _bytes(_HEAD.encode() + b"\n")),
    "latin-1": ("E_TABLE", _SOUND, lambda rows: _table(rows) + b"M\xfcller.png,M\xfcller,PA,0\n"),
    "utf-16": ("E_TABLE", _SOUND, lambda rows: _table(rows).decode().encode("utf-16")),
    "binary": ("E_TABLE", _SOUND, _bytes(b"PK\x03\x04\x14\0\x06\0\x08\0" + bytes(range(256)) * 4)),
    "semicolons": ("E_TABLE", _SOUND, lambda rows: _table(rows, delimiter=";")),
    "tabs": ("E_TABLE", _SOUND, lambda rows: _table(rows, delimiter="\t")),
    "no-header": ("E_TABLE", _SOUND, lambda rows: _table(rows).split(b"\n", 1)[1]),
    "ragged-row": ("E_TABLE", _SOUND, lambda rows: _table(rows) + f"1.png,{PLANTED},PA,0,0,0\n".encode()),
    "open-quote": ("E_TABLE", _SOUND, lambda rows: _table(rows) + f'1.png,"{PLANTED},PA,0\n'.encode()),
    "repeated-column": ("E_TABLE", _SOUND, _edited(_HEAD, "path,patient,edema,edema")),
    "no-patient-column": ("E_TABLE", _SOUND, _edited("path,patient,", "path,name,")),
    "views-nobody-has": ("E_DATA", _toml("root =", 'views = ["LATERAL"]\nroot ='), _table),
    "no-label-column": ("E_LABELS", _SOUND, _edited(",edema", ",oedeem")),
    "labels-are-names": ("E_LABELS", _SOUND, _with("edema", [f"{PLANTED}-1", "0", f"{PLANTED}-2"])),
    "unsure-without-a-policy": ("E_LABELS", _SOUND, _with("edema", ["1", "0", "-1"])),
    "patient-in-two-splits": ("E_SPLIT", _SOUND, _with("split", ["train", "test", "train"])),
    "split-half-filled": ("E_SPLIT", _SOUND, _with("split", ["train", ""])),
    "nothing-readable": ("E_DATA", _toml("../../images", "."), _with("path", ["note.txt"])),
    "too-much-unreadable": ("E_DATA", _SOUND, _with("path", ["no.png"])),
}
"""Case -> error code, site.toml, table."""
