"""``fedcxr-simulate``: many sites on one machine or a Ray cluster."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from common.console import exit_codes, fail_clearly
from simulations import benchmark_commands, budget_commands

for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(_name, _value)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=exit_codes(),
)


@app.callback()
def main() -> None:
    """Simulate a federation of hospitals that fine-tune a chest-radiograph model together.

    Each simulated site runs the code a real site runs, on its own studies, and sends only the
    update of its adapter. Start with `fedcxr-simulate run demo`.
    """


@app.command(epilog=exit_codes())
def run(
    experiment: Annotated[
        str, typer.Argument(help="A TOML file, or a name that the command list prints.")
    ] = "demo",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override any key (see the command keys); may be repeated."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME-DATE-TIME.")] = None,
    engine: Annotated[
        str, typer.Option(help="`inline`: this process. `ray`: Flower's engine, also on a cluster.")
    ] = "inline",
    arms: Annotated[
        str, typer.Option(help="Comma list of local, federated, pooled, held-out. Default: the experiment's.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, to the same bits.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only where the report is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every event as one JSON line.")] = False,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Show the run on a web page while it goes on.")
    ] = False,
) -> None:
    """Run an experiment and write its report.

    EXPERIMENT is a TOML file, or a name that `fedcxr-simulate list` prints.
    Arms are trained with equal local work: `local` (each site alone), `federated`, and `pooled`
    (all studies in one place, the reference no hospital could have). The run folder gets plan.toml,
    ledger.sqlite, one checkpoint per round, release/, report.json and report.html.

    Examples:

        fedcxr-simulate run demo
        fedcxr-simulate run demo --set pet.method=bitfit --set rounds.count=4 --arms local,federated
        fedcxr-simulate run my.toml --out runs/mine --resume
        fedcxr-simulate run demo --monitor
    """
    with fail_clearly(as_json), ExitStack() as beside:
        from common.errors import ConfigError
        from server.report_words import headline
        from simulations.experiment import load_experiments
        from simulations.run import run_series
        from simulations.view import View

        if engine not in ("inline", "ray"):
            raise ConfigError("--engine is inline or ray", found=engine)
        if quiet and as_json:
            raise ConfigError("--quiet and --json exclude each other")
        if resume and out is None:
            raise ConfigError("--resume needs the run's folder", fix="add --out FOLDER")
        changes = [*(assignments or []), *([f"arms={arms}"] if arms else [])]
        described = load_experiments(experiment, changes)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = out or Path("runs") / f"{Path(experiment).stem}-{stamp}"
        watching = None
        if monitor:
            from simulations.watching import Watching

            watching = Watching(folder)
            beside.callback(watching.close)
        view = View("json" if as_json else "quiet" if quiet else "live", watching)
        reports = run_series(
            described,
            folder,
            engine="ray" if engine == "ray" else "inline",
            resume=resume,
            view=view,
        )
        for place, report in reports.items():
            page = (place / "report.html").resolve()
            if as_json:
                view.say(f"report: {page}")
                continue
            if not quiet:
                answer = headline(report)
                typer.echo(f"\n{answer.answer}")
                for detail in answer.details:
                    typer.echo(detail)
            typer.echo(f"Report: {page}")
        if monitor:
            again = f"The page is closed. To open it again: fedcxr-server monitor {shlex.quote(str(folder))}"
            view.say(again) if as_json else typer.echo(again)


@app.command("keys")
def list_keys(
    search: Annotated[str, typer.Argument(help="Only keys that contain this.")] = "",
) -> None:
    """Explain every key that --set and an experiment's TOML file take, with its default."""
    with fail_clearly():
        from common.config import described_keys

        for key, default, meaning in described_keys():
            if search in key:
                shown = ", ".join(default) if isinstance(default, tuple) else default
                typer.echo(f"{key} = {shown if shown != '' else '(empty)'}\n    {meaning}")


app.command("benchmark", epilog=exit_codes())(benchmark_commands.benchmark)
app.command("budget", epilog=exit_codes())(budget_commands.budget)
app.command("backbones")(budget_commands.backbones)


@app.command("list")
def list_experiments() -> None:
    """Name the experiments that come with the package, and say which are grids for the command benchmark."""
    with fail_clearly():
        from common.overrides import read_toml
        from simulations.experiment import shipped

        for name, path in sorted(shipped().items()):
            tree = read_toml(path)
            typer.echo(f"{name:<24} {'grid  ' if 'benchmark' in tree else '      '}{tree.get('title', '')}")


@app.command("make-site")
def make_site_command(
    directory: Annotated[Path, typer.Argument(help="Folder to write; created if absent.")],
    name: Annotated[str, typer.Option(help="The site's name.")] = "phantom",
    studies: Annotated[int, typer.Option(help="Number of studies.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of its patients.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 256,
    scanner: Annotated[str, typer.Option(help="Scanner preset.")] = "reference",
    findings: Annotated[str, typer.Option(help="Comma list annotated here; empty: all.")] = "",
    format: Annotated[str, typer.Option("--format", help="png or dicom.")] = "png",
    spoil: Annotated[
        bool, typer.Option("--spoil", help="Add bad input of every kind; spoiled.csv tells the code of each.")
    ] = False,
) -> None:
    """Write a site of procedural radiographs as files: images, studies.csv and site.toml."""
    with fail_clearly():
        from simulations.make_site import make_site

        wanted = tuple(f.strip() for f in findings.split(",") if f.strip()) or None
        file = make_site(directory, name, studies, seed, size, scanner, wanted, format, spoil=spoil)
        typer.echo(f"{studies} studies written; the site's description is {file}")
        if spoil:
            typer.echo(f"Spoiled studies and their codes: {directory / 'spoiled.csv'}")
            typer.echo(f"Sites that cannot be used: {directory / 'broken' / 'expected.csv'}")


if __name__ == "__main__":
    sys.exit(app())
