"""``budget`` and ``backbones``: what a method trains, and which encoders there are by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.console import fail_clearly

if TYPE_CHECKING:
    from common.config import RunConfig
    from common.pet.budget import Fit


_POOLS = {"avg": "mean pooling", "token": "class token"}


def budget(
    target: Annotated[str, typer.Option(help="Parameters to train, for example 2.37M, 160k or 2370062.")],
    method: Annotated[str, typer.Option(help="Comma list of PET methods. Default: all.")] = "",
    experiment: Annotated[
        str, typer.Option(help="An experiment whose model and findings count. Default: the defaults.")
    ] = "",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override any key (see the command keys)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Find the rank, bottleneck or scope of each method that trains a given number of parameters.

    Within 1 % of the target, head included; where a method cannot, the nearest it can is told. The
    count needs no weights and no data.

    Examples:

        fedcxr-simulate budget --target 100k

        fedcxr-simulate budget --target 2.37M --set model.backbone=biomedclip --set data.image_size=224
    """
    with fail_clearly(as_json):
        from common.errors import ConfigError
        from common.pet.budget import parse_count, solve
        from common.pet.registry import METHODS

        config = _config(experiment, assignments or [])
        wanted = tuple(part.strip() for part in method.split(",") if part.strip()) or tuple(METHODS)
        number = parse_count(target)
        fits = solve(config, number, wanted)
        if as_json:
            backbone = config.model.backbone
            facts = {"target": number, "backbone": backbone, "methods": [_facts(fit) for fit in fits]}
            typer.echo(json.dumps(facts))
        else:
            _print(config, number, fits)
        if not any(fit.fits for fit in fits):
            nearest = min(
                (fit for fit in fits if not fit.problem), key=lambda fit: abs(fit.off), default=None
            )
            raise ConfigError(
                f"no setting trains {number:,} parameters within 1 %",
                found=f"nearest: {_words(nearest)}" if nearest else fits[0].problem,
                fix="change the target, pet.targets or the backbone",
            )


def backbones(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """List the image encoders that `model.backbone` takes by name, and which files of theirs are read.

    Beside these: `embedded`, our own, which needs no file, and `timm:NAME` for any architecture of timm.
    """
    with fail_clearly(as_json):
        from dataclasses import asdict

        from common.model.zoo import BACKBONES

        if as_json:
            typer.echo(json.dumps({name: asdict(known) for name, known in BACKBONES.items()}))
            return
        for name, known in BACKBONES.items():
            typer.echo(f"{name:<18} {known.about}")
            for line in (
                f"timm:{known.architecture}, {known.size} px, {_POOLS[known.pool]}; grey values "
                f"{known.mean[0]:.4f} ± {known.std[0]:.4f}; LoRA on {', '.join(known.targets)}",
                f"reads {'; '.join(known.files)}",
            ):
                typer.echo(f"{'':<18} {line}")
        typer.echo("\nWeights are safetensors files or folders that you have: --set model.weights=PATH")


def _config(experiment: str, assignments: list[str]) -> RunConfig:
    from common.config import RunConfig
    from common.overrides import parse_assignment, set_key
    from simulations.experiment import load_experiments

    if experiment:
        first = next(iter(load_experiments(experiment, assignments).values()))
        return first.run_config(1)
    tree: dict[str, Any] = {}
    for text in assignments:
        set_key(tree, *parse_assignment(text))
    return RunConfig.build(tree)


def _print(config: RunConfig, target: int, fits: list[Fit]) -> None:
    from rich.console import Console
    from rich.table import Table

    head = f"{target:,} parameters on {config.model.backbone}, {len(config.data.findings)} findings"
    table = Table(title=head, box=None, header_style="bold", pad_edge=False, title_justify="left")
    for column in ("method", "set", "trained", "off", ""):
        table.add_column(column, justify="right" if column in ("trained", "off") else "left")
    for fit in fits:
        if fit.problem:
            table.add_row(fit.method, "", "", "", f"cannot: {fit.problem}")
            continue
        off = f"{100 * fit.off:+.2f} %" if abs(fit.off) < 10 else f"x {fit.parameters / target:.0f}"
        note = "" if fit.fits else "nearest"
        table.add_row(fit.method, _settings(fit), f"{fit.parameters:,}", off, note)
    Console().print(table)
    if any(not fit.fits and not fit.problem for fit in fits):
        typer.echo("nearest: no size and no scope of this method is within 1 %")


def _settings(fit: Fit) -> str:
    return " ".join(f"{key}={value}" for key, value in fit.settings.items())


def _words(fit: Fit) -> str:
    settings = " and ".join(f"{key} = {value}" for key, value in fit.settings.items())
    return f"{fit.method} with {settings} trains {fit.parameters:,}"


def _facts(fit: Fit) -> dict[str, Any]:
    if fit.problem:
        return {"method": fit.method, "fits": False, "problem": fit.problem}
    facts = {"settings": dict(fit.settings), "parameters": fit.parameters, "off": round(fit.off, 6)}
    return {"method": fit.method, "fits": fit.fits, **facts}
