"""Tables as files: CSV in pieces as it is read, Parquet whole.

``python -m server.monitor.table_files LEDGER TABLE FILE`` writes one Parquet file and ends: pyarrow
takes some 100 MB that a page kept open for weeks does not get back.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from common.errors import RunError
from server.facts.view import LedgerView
from server.monitor.tables import TABLES, Cell, Table

_PIECE = 64_000
"""Bytes of CSV handed on at a time."""
_GROUP = 50_000
"""Rows of Parquet written at a time."""
_PATIENCE = 300.0
"""Seconds one Parquet file may take."""
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def csv_pieces(table: Table, ledger: Path) -> Iterator[bytes]:
    """Yield a table as CSV (RFC 4180, UTF-8), a piece at a time.

    A spreadsheet takes text that begins with ``=``, ``+``, ``-`` or ``@`` for a formula and runs it;
    such text gets a ``'`` in front. Numbers are numbers.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([column.name for column in table.columns])
    with LedgerView(ledger) as view:
        for row in table.rows(view):
            writer.writerow([_shown(cell) for cell in row])
            if buffer.tell() > _PIECE:
                yield _take(buffer)
    yield _take(buffer)


def _take(buffer: io.StringIO) -> bytes:
    piece = buffer.getvalue().encode()
    buffer.seek(0)
    buffer.truncate()
    return piece


def _shown(cell: Cell) -> Cell:
    if isinstance(cell, datetime):
        return cell.isoformat().replace("+00:00", "Z")
    if isinstance(cell, str) and _FORMULA.match(cell):
        return f"'{cell}"
    return cell


def write_parquet(table: Table, ledger: Path, file: Path) -> None:
    """Write a table as Parquet, in this process."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "text": pa.string(),
        "whole": pa.int64(),
        "number": pa.float64(),
        "time": pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema(
        [
            pa.field(column.name, kinds[column.kind], metadata={"about": column.about})
            for column in table.columns
        ]
    )
    with LedgerView(ledger) as view, pq.ParquetWriter(file, schema) as writer:
        rows = table.rows(view)
        while group := list(islice(rows, _GROUP)):
            columns = [
                pa.array(values, type=field.type)
                for values, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.table(columns, schema=schema))


def make_parquet(table: Table, ledger: Path, file: Path) -> None:
    """Write a table as Parquet, in a process of its own.

    Raises:
        RunError: if that process failed or took more than five minutes.
    """
    # -P: a folder called server where somebody happens to stand must not be taken for ours.
    command = [sys.executable, "-P", "-m", __name__, str(ledger), table.name, str(file)]
    try:
        subprocess.run(command, check=True, timeout=_PATIENCE, capture_output=True)
    except (subprocess.SubprocessError, OSError):
        raise RunError(
            f"the table {table.name} could not be written as Parquet", fix="take the CSV"
        ) from None


if __name__ == "__main__":
    write_parquet(TABLES[sys.argv[2]], Path(sys.argv[1]), Path(sys.argv[3]))
