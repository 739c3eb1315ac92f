"""``fedcxr-site``: what hospital IT runs next to its studies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client import ladder_commands
from client.gate import commands as gate_commands
from client.gate.audit_commands import audit
from client.join import commands as join_commands
from client.node import commands as node_commands
from client.text import commands
from common.console import exit_codes, fail_clearly

if TYPE_CHECKING:
    from rich.console import Console

    from client.data.columns import Text

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=exit_codes()
)

_JOIN, _DATA, _RUN = "Join a federation", "Studies", "Take part"


@app.callback()
def main() -> None:
    """Look after one hospital's side of a federation. Images never leave it."""


@app.command(rich_help_panel=_DATA)
def index(
    place: Annotated[
        Path, typer.Argument(help="The site's site.toml, or a folder of studies that has none yet.")
    ] = Path("site.toml"),
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Only propose [labels] and [clinical] for the table.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Take every guess instead of asking.")] = False,
) -> None:
    """Read the site's table and every image, and write an index a clinician can check.

    Of a folder without site.toml it asks what it cannot know, shows its guesses and writes one.
    Studies are split by patient; one that cannot be used is set aside with a code that says why
    (docs/bad-input.md). A second run reads only what has changed. Nothing is sent; what is
    written holds patient data and stays here.
    """
    with fail_clearly():
        from rich.console import Console

        from client.data.index import index_site, write_index
        from client.review.summary import summarise
        from client.review.words import render
        from client.site import load_site

        console = Console()
        file = place if not place.is_dir() else place / "site.toml"
        if suggest:
            from client.setup.questions import suggest_text

            typer.echo(suggest_text(_columns_of(file)))
            return
        if place.is_dir() and not file.is_file():
            from client.setup.questions import describe_site

            describe_site(place, console, take_guesses=yes or not sys.stdin.isatty())
        site = load_site(file)
        with _progress(console) as progress:
            table, pictures = index_site(site, progress)
        folder = site.data.state / "index"
        page = folder / "index.html"
        changed = write_index(table, folder / "index.parquet")
        if changed or not page.is_file() or page.stat().st_mtime < file.stat().st_mtime:
            from client.review.page import write_page

            write_page(table, pictures, site.name, folder, site.evaluate.min_cell)
        console.print(render(summarise(table, site.name, site.evaluate.min_cell)))
        typer.echo(f"Index: {(folder / 'index.parquet').resolve()}\nTo look at: {page.resolve()}")


app.command("redact", rich_help_panel=_DATA)(commands.redact)
app.command("leak-probe", rich_help_panel=_DATA)(commands.leak_probe)
app.command("init", rich_help_panel=_JOIN)(join_commands.init)
app.command("join", rich_help_panel=_JOIN)(join_commands.join)
app.command("doctor", rich_help_panel=_JOIN)(ladder_commands.doctor)
app.command("rehearse", rich_help_panel=_JOIN)(ladder_commands.rehearse)
app.command("train-local", rich_help_panel=_JOIN)(ladder_commands.train_local)
app.command("approve", rich_help_panel=_JOIN)(gate_commands.approve)
app.command("start", rich_help_panel=_RUN)(node_commands.start)
app.command("status", rich_help_panel=_RUN)(node_commands.status)
app.add_typer(audit, name="audit", rich_help_panel=_RUN)
app.command("leave", rich_help_panel=_RUN)(node_commands.leave)


def _columns_of(file: Path) -> Mapping[str, Text]:
    """Read the columns a site.toml names, or those of the likeliest table where there is none yet."""
    from client.data.columns import read_columns
    from client.data.source import read_source
    from client.setup.guess import guess_site
    from client.site import load_site
    from common.errors import TableError

    if file.is_file():
        return read_source(load_site(file))
    guess = guess_site(file.parent)
    if not guess.table:
        raise TableError("there is no table to make suggestions for", found=str(file.parent))
    return read_columns(file.parent / guess.table)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while images are read; nothing where there is none to read."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("reading images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


@app.command("version")
def show_version() -> None:
    """Print the version and the digest of the code, which a server must share."""
    from importlib.metadata import version

    from common.code import code_digest

    typer.echo(f"fedcxr {version('fedcxr')}, code {code_digest()}")


if __name__ == "__main__":
    sys.exit(app())
