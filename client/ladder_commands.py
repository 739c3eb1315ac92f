"""``doctor``, ``rehearse`` and ``train-local``: what a site does before it takes part; see `client.cli`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console import fail_clearly

if TYPE_CHECKING:
    from rich.console import Console

    from client.train_local import LocalResult

Place = Annotated[Path, typer.Argument(help="The site's site.toml, or the folder that holds it.")]


def train_local(
    place: Place = Path("site.toml"),
    plan: Annotated[
        Path | None, typer.Option(help="TOML file of the plan; without it every setting has its default.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override any key of the plan; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")] = False,
) -> None:
    """Train this site's own baseline with a plan's settings and measure it on its own test studies.

    The same code, steps and choice of round as in a federation, without any other site; nothing is
    sent. A later run of the same plan finds the baseline in the site's state and compares with it.
    """
    with fail_clearly(as_json):
        import logging

        from rich.console import Console

        from client.place import SiteFolder
        from client.plan import read_plan
        from client.site import load_site

        # What the worker logs of a failure is told in words below.
        logging.getLogger("client").addHandler(logging.NullHandler())
        config = read_plan(plan, assignments or ())
        site = load_site(SiteFolder.of(place).settings if place.is_dir() else place)
        # Only now what takes seconds to load.
        from client.train_local import train_site

        console = Console(stderr=True)
        with _progress(console) as progress:
            result = train_site(site, config, progress)
        if as_json:
            typer.echo(json.dumps(_facts(result)))
        else:
            _show(result, site.evaluate.min_cell)


def doctor(
    place: Place = Path("site.toml"),
    offline: Annotated[bool, typer.Option("--offline", help="Leave the network alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")] = False,
) -> None:
    """Look at everything this site needs and say how to mend what is wrong; takes under ten seconds.

    This machine, files and keys, code and approval, the way to the centre, the studies. Ends with 0
    if nothing failed, else with 8. What it prints holds nothing about patients and can be sent to IT.
    """
    with fail_clearly(as_json):
        from client.join.doctor import examine
        from client.join.doctor_words import facts, show

        found = examine(place, offline)
        if as_json:
            typer.echo(json.dumps(facts(found)))
        else:
            show(found)
        if not found.healthy:
            # Not sys.exit: a check that hangs must not keep the process.
            raise SystemExit(8)


def rehearse(
    place: Place = Path("site.toml"),
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Folder to leave the phantoms, audits and the run in.")
    ] = None,
) -> None:
    """Go through a whole run on drawn radiographs, on this machine and without a network.

    With this site's own policy.toml, image format and findings, and a centre for the day: what would
    be asked, what is checked, what would leave, how long a round takes. Ends with 0 if nothing was
    refused. Nothing of the site's studies is used and nothing of the site is changed.
    """
    with fail_clearly():
        from client.rehearsal import start_rehearsal

        code = start_rehearsal(place, keep)
        if code:
            raise SystemExit(code)


def _show(result: LocalResult, min_cell: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    studies, metrics = result.studies, result.metrics
    typer.echo(
        f"{result.site}, plan {result.plan_digest[:12]}: {studies['train']} training, "
        f"{studies['validation']} validation, {studies['test']} test studies"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("finding", "test AUROC", "95 % interval", "with", "without"):
        table.add_column(head, justify="left" if head == "finding" else "right")
    for finding, m in metrics.findings.items():
        if m.positives == m.negatives == 0:
            table.add_row(finding, "-", f"fewer than {min_cell}", "", "")
            continue
        cells = (_figure(m.auroc), _interval(m.interval), str(m.positives), str(m.negatives))
        table.add_row(finding, *cells)
    table.add_row("macro", _figure(metrics.macro_auroc), _interval(metrics.macro_interval), "", "")
    console.print(table)
    if result.kept_before:
        typer.echo(f"Kept from an earlier run of this plan, measured again in {result.seconds:.0f} s.")
    else:
        typer.echo(
            f"Trained alone in {result.seconds:.0f} s: {result.steps} steps, "
            f"the adapter after round {result.rounds_kept} was kept."
        )
    typer.echo(f"A run of the same plan compares with it: {result.file}")


def _facts(result: LocalResult) -> dict[str, object]:
    metrics = result.metrics
    return {
        "kind": "local",
        "site": result.site,
        "plan": result.plan_digest,
        "studies": result.studies,
        "steps": result.steps,
        "rounds_kept": result.rounds_kept,
        "kept_before": result.kept_before,
        "seconds": round(result.seconds, 1),
        "macro_auroc": metrics.macro_auroc,
        "macro_interval": metrics.macro_interval,
        "findings": {
            name: {"auroc": m.auroc, "interval": m.interval, "positives": m.positives}
            for name, m in metrics.findings.items()
        },
    }


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(pair: tuple[float, float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while images are read, and that training goes on afterwards."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("reading images", total=None)

        def told(done: int, total: int) -> None:
            if done < total:
                bar.update(task, completed=done, total=total)
            else:
                bar.update(task, description="training", completed=0, total=None)

        yield told
