"""``fedcxr-server export``: a run's numbers for spreadsheets, notebooks, TensorBoard and MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console import fail_clearly

if TYPE_CHECKING:
    from server.facts.runs import Run
    from server.monitor.writers.follow import Follower

_LOOK = 1.0
"""Seconds between two looks at a run that is followed."""


@dataclass(frozen=True)
class _Wanted:
    """What is to be written, and where."""

    csv: Path | None
    parquet: Path | None
    tensorboard: Path | None
    mlflow: str | None

    @property
    def nothing(self) -> bool:
        return not (self.csv or self.parquet or self.tensorboard or self.mlflow)


def export(
    run: Annotated[str, typer.Argument(help="A run's name at the centre, or the folder of a run.")],
    csv: Annotated[Path | None, typer.Option("--csv", help="Folder for one CSV file per table.")] = None,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", help="Folder for one Parquet file per table.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder of event files; tensorboard --logdir DIR.")
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option("--mlflow", help="Folder, sqlite:///FILE or https address of a tracking server."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is over, or Ctrl-C.")] = False,
    centre: Annotated[
        Path | None,
        typer.Option("--centre", help="The centre's folder; else FEDCXR_CENTRE, or the working folder."),
    ] = None,
) -> None:
    """Write a run's numbers for other programs. It reads the run's ledger and changes nothing of it.

    Exported again, TensorBoard and MLflow get what is new, and nothing twice. Neither can take a value
    back: a run that was rolled back is written there a second time, whole, and the first says by
    which it was replaced.
    """
    with fail_clearly():
        from common.errors import ConfigError

        wanted = _Wanted(csv, parquet, tensorboard, mlflow)
        if wanted.nothing:
            raise ConfigError(
                "nothing is to be written", fix="name --csv, --parquet, --tensorboard or --mlflow"
            )
        found = _find(run, centre)
        try:
            with _followers(found, wanted) as followers:
                if follow:
                    typer.echo(f"Following {found.key} until it is over; Ctrl-C ends it.")
                _feed(found, followers, follow)
        except KeyboardInterrupt:
            typer.echo("\nWhat was read is written. To go on, give the same command again.")
        _write_tables(found, wanted)
        found.close()


def _find(name: str, centre: Path | None) -> Run:
    """Return a run by its folder, or by its name at the centre."""
    from common.errors import ConfigError
    from server.centre.folder import CentreFolder
    from server.facts.runs import Runs

    folder = Path(name)
    if centre is None and folder.is_dir():
        there = Runs.of_folder(folder).list()
        if len(there) == 1:
            return there[0]
        found = f"{len(there)} runs in {folder}" if there else f"no run in {folder}"
        raise ConfigError("name the folder of one run", found=found, fix="the one with ledger.sqlite")
    return Runs.of_centre(CentreFolder.find(centre)).find(name)


@contextmanager
def _followers(run: Run, wanted: _Wanted) -> Iterator[list[Follower]]:
    from server.monitor.writers.follow import Follower
    from server.monitor.writers.writer import Writer

    writers: list[Writer] = []
    if wanted.tensorboard is not None:
        from server.monitor.writers.tensorboard import TensorBoardWriter

        writers.append(TensorBoardWriter(wanted.tensorboard))
    if wanted.mlflow is not None:
        from server.monitor.writers.mlflow import MlflowWriter

        writers.append(MlflowWriter(wanted.mlflow))
    try:
        yield [Follower(run, writer, time.time()) for writer in writers]
    finally:
        for writer in writers:
            writer.close()


def _feed(run: Run, followers: list[Follower], follow: bool) -> None:
    from server.facts.standing import standing
    from server.monitor.writers.follow import OVER

    seen, written = None, 0
    while True:
        over = standing(run, time.time()).state in OVER  # before the last look, so that nothing is missed
        revision = run.view().revision()
        if revision != seen or over:
            seen = revision
            written += sum(follower.step(time.time()) for follower in followers)
        if over or not follow:
            break
        time.sleep(_LOOK)
    if followers:
        typer.echo(f"{run.key}: {written:,} new values" if written else f"{run.key}: nothing new")


def _write_tables(run: Run, wanted: _Wanted) -> None:
    """Write every table."""
    from server.monitor.table_files import csv_pieces, write_parquet
    from server.monitor.tables import TABLES

    ledger = run.folder / "ledger.sqlite"
    for name, table in TABLES.items():
        if wanted.csv is not None:
            with _whole(wanted.csv / f"{name}.csv") as half, half.open("wb") as stream:
                stream.writelines(csv_pieces(table, ledger))
        if wanted.parquet is not None:
            with _whole(wanted.parquet / f"{name}.parquet") as half:
                write_parquet(table, ledger, half)
    for folder in (wanted.csv, wanted.parquet):
        if folder is not None:
            typer.echo(f"{len(TABLES)} tables in {folder}")


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Name a file to write to, which takes its place when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.part")
    try:
        yield half
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)
