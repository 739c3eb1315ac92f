"""``fedcxr-server``: what a coordinating centre runs. It never sees an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from common.console import exit_codes, fail_clearly
from server.centre import provision_commands, run_commands
from server.monitor import commands as monitor_commands
from server.monitor import export_commands

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=exit_codes()
)

Folder = Annotated[Path, typer.Argument(help="Run folder: the one with ledger.sqlite.")]


@app.callback()
def main() -> None:
    """Coordinate a federation: who takes part, what is run, what is released."""


_PROVISION = "Who takes part"
_RUNS = "Runs"
app.command("init", rich_help_panel=_PROVISION)(provision_commands.init)
app.command("invite", rich_help_panel=_PROVISION)(provision_commands.invite)
app.command("admit", rich_help_panel=_PROVISION)(provision_commands.admit)
app.command("revoke", rich_help_panel=_PROVISION)(provision_commands.revoke)
app.command("sites", rich_help_panel=_PROVISION)(provision_commands.sites)
app.command("renew", rich_help_panel=_PROVISION)(provision_commands.renew)
app.command("start", rich_help_panel=_RUNS)(run_commands.start)
app.command("run", rich_help_panel=_RUNS)(run_commands.run)
app.command("status", rich_help_panel=_RUNS)(run_commands.status)
app.command("resume", rich_help_panel=_RUNS)(run_commands.resume)
app.command("rollback", rich_help_panel=_RUNS)(run_commands.rollback)
app.command("stop", rich_help_panel=_RUNS)(run_commands.stop)
app.command("release", rich_help_panel=_RUNS)(run_commands.release)
_WATCHING = "Watching"
app.command("monitor", rich_help_panel=_WATCHING)(monitor_commands.monitor)
app.command("password", rich_help_panel=_WATCHING)(monitor_commands.password)
app.command("export", rich_help_panel=_WATCHING)(export_commands.export)


@app.command(rich_help_panel=_RUNS)
def report(run: Folder) -> None:
    """Write report.json and report.html again from a run's ledger."""
    with fail_clearly():
        from server.report import write_report
        from server.summary import summarise

        typer.echo(f"Report: {write_report(summarise(run), run).resolve()}")


if __name__ == "__main__":
    sys.exit(app())
