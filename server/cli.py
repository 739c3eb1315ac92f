"""``fedcxr-server``: what a coordinating centre runs. It never sees an image."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from common.console import exit_codes, fail_clearly

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=exit_codes()
)

Folder = Annotated[Path, typer.Argument(help="Run folder: the one with ledger.sqlite.")]


@app.callback()
def main() -> None:
    """Look after a federation's runs."""


@app.command()
def status(
    run: Folder,
    everything: Annotated[bool, typer.Option("--all", help="Every event, not the last 20.")] = False,
) -> None:
    """Tell what happened in a run, also while it goes on."""
    with fail_clearly():
        from common.errors import RunError
        from server.ledger import Ledger

        if not (run / "ledger.sqlite").is_file():
            raise RunError(f"{run} holds no run", fix="name the folder given to --out")
        ledger = Ledger(run / "ledger.sqlite")
        events = list(ledger.events())
        ledger.close()
        for event in events if everything else events[-20:]:
            when = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
            typer.echo(f"{when}  {event.text}")


@app.command()
def report(run: Folder) -> None:
    """Write report.json and report.html again from a run's ledger."""
    with fail_clearly():
        from server.report import write_report
        from server.summary import summarise

        typer.echo(f"Report: {write_report(summarise(run), run).resolve()}")


if __name__ == "__main__":
    sys.exit(app())
