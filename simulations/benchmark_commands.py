"""``fedcxr-simulate benchmark``: run a grid and answer its questions."""

from __future__ import annotations

import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console import fail_clearly
from common.threads import cores_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulations.benchmark.cells import Cell
    from simulations.benchmark.results import Failure, Result
    from simulations.benchmark.summary import Summary

MOST_JOBS = 4
"""Cells at a time unless told otherwise: each holds a model and a site's images."""
MOST_FAILURES = 10
"""Failed cells the terminal names; the page names all."""


def benchmark(
    grid: Annotated[str, typer.Argument(help="A TOML file with a [benchmark] table, or a shipped name.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; one that is there is gone on with. Default: runs/NAME-DATE-TIME."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override any key, also benchmark.seeds; may be repeated."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Cells at a time; 0: as many as there are cores, at most 4.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what is finished of them; run nothing.")
    ] = False,
) -> None:
    """Run a grid of experiments, each cell once, and answer its questions with intervals.

    A grid varies one experiment by named variants, axes and seeds. Cells share sites and decoded
    images. Started again with the same --out it repeats nothing that was finished, whatever ended it,
    and goes on with what was not; a cell that fails is shown with its code and stops no other.
    The folder gets table.csv, table.json, summary.json, benchmark.html and a run folder for each cell.

    Examples:

        fedcxr-simulate benchmark paper_medpeft
        fedcxr-simulate benchmark my.toml --out runs/grid --jobs 2
        fedcxr-simulate benchmark paper_tpp --set benchmark.seeds=[0] --dry-run
    """
    with fail_clearly():
        from common.errors import RunError
        from simulations.benchmark.cells import expand
        from simulations.benchmark.grid import load_grid
        from simulations.benchmark.page import write_page
        from simulations.benchmark.results import Result, write_tables
        from simulations.benchmark.run_cell import place_of_cell
        from simulations.benchmark.runner import run_grid, unfinished
        from simulations.benchmark.summary import summarise, write_summary
        from simulations.run import quiet_libraries

        quiet_libraries()
        described, experiment = load_grid(grid, assignments or [])
        cells = expand(described, experiment)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = out or Path("runs") / f"{Path(grid).stem}-{stamp}"
        pending = unfinished(cells, folder)
        done = len({cell.digest for cell in cells}) - len(pending)
        typer.echo(f"{described.question}\n{len(cells)} cells in {folder}, {done} finished")
        if dry_run:
            waiting = {cell.digest for cell in pending}
            for cell in cells:
                state = "to run" if cell.digest in waiting else "finished"
                typer.echo(f"{cell.digest[:12]}  {state:<8}  {cell.label}, seed {cell.coordinates['seed']}")
            return
        at_a_time = jobs or min(cores_here(), MOST_JOBS)
        found = run_grid(cells, folder, at_a_time, _progress(len(pending)))
        write_tables(found, folder)
        summary = summarise(experiment.title, described, found, lambda cell: place_of_cell(cell, folder))
        write_summary(summary, folder)
        page = write_page(summary, folder)
        _show(summary)
        typer.echo(f"Table: {(folder / 'table.csv').resolve()}\nReport: {page.resolve()}")
        if not any(isinstance(result, Result) for _, result in found):
            raise RunError("no cell could be finished", found=summary.failures[0][1].code)


def _progress(total: int) -> Callable[[Cell, Result | Failure], None]:
    """Return what says a line after each cell."""
    began, finished, lock = time.monotonic(), [0], threading.Lock()

    def tell(cell: Cell, result: Result | Failure) -> None:
        from server.report_words import number
        from simulations.benchmark.results import MACRO, Failure

        with lock:
            finished[0] += 1
            left = (time.monotonic() - began) / finished[0] * (total - finished[0])
            name = f"[{finished[0]}/{total}] {cell.label}, seed {cell.coordinates['seed']}"
            if isinstance(result, Failure):
                typer.echo(f"{name}: {result.code} {result.problem}")
                return
            scores = [
                row.auroc
                for row in result.rows
                if row.arm == "federated" and row.finding == MACRO and row.auroc is not None
            ]
            score = f"AUROC {number(sum(scores) / len(scores))}" if scores else "no defined AUROC"
            typer.echo(f"{name}: {score}, about {left / 60:.0f} min left")

    return tell


def _show(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    from server.report_words import number, size
    from simulations.benchmark.grid import METRIC_WORDS
    from simulations.benchmark.words import sentence, spoken, tally

    metric = summary.grid.metric
    table = Table(title=summary.title, title_justify="left")
    for heading in ("cell", METRIC_WORDS[metric], "worst site", "trained", "sent", "seeds"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for line in summary.lines:
        worst = f"{number(line.worst[1])} {line.worst[0]}" if line.worst else "n/a"
        failed = f" ({line.failed} failed)" if line.failed else ""
        table.add_row(
            line.label,
            spoken(line.scores.get("federated", {}).get(metric)),
            worst,
            f"{line.trained_parameters:,}",
            size(line.bytes_up),
            f"{line.seeds}{failed}",
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)
    for name, failure in summary.failures[:MOST_FAILURES]:
        typer.echo(f"failed: {name}: {failure.code} {failure.problem}")
    if (more := len(summary.failures) - MOST_FAILURES) > 0:
        typer.echo(f"failed: {more} more, in the report")
    for name, sites in summary.at_fewer_sites[:MOST_FAILURES]:
        typer.echo(f"at fewer sites, so its mean stands alone: {name} was not measured at {', '.join(sites)}")
    for row in summary.outcomes:
        typer.echo(sentence(row))
    if summary.against_reference:
        typer.echo(f"Against {summary.grid.reference}, {tally(summary.against_reference)}")
