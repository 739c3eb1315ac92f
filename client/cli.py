"""``fedcxr-site``: what hospital IT runs next to its studies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from common.console import exit_codes, fail_clearly

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=exit_codes()
)


@app.callback()
def main() -> None:
    """Look after one hospital's side of a federation. Images never leave it."""


@app.command()
def check(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    findings: Annotated[
        str, typer.Option(help="Comma list of a plan's findings; empty: all the site labels.")
    ] = "",
    image_size: Annotated[int, typer.Option(help="Side of the images a plan trains on.")] = 96,
) -> None:
    """Read the site's table and every image, and count what a run would use.

    Decoded pixels are kept in the site's cache, so the first run starts faster. Nothing is sent.
    """
    with fail_clearly():
        from client.data.dataset import load_site_data
        from client.site import load_site
        from common.errors import LabelError

        config = load_site(site)
        wanted = tuple(f.strip() for f in findings.split(",") if f.strip()) or tuple(config.labels)
        if not wanted:
            raise LabelError(f"{site.name} labels no finding", fix="fill in [labels]")
        data = load_site_data(config, wanted, image_size)
        typer.echo(f"{config.name}: {len(set(data.patients.tolist()))} patients")
        for split, rows in data.split.items():
            typer.echo(f"  {split:<12}{len(rows):>7} studies")
        for reason, count in sorted(data.quarantined.items()):
            typer.echo(f"  set aside   {count:>7} {reason}")
        for reason, count in sorted(data.removed.items()):
            typer.echo(f"  not asked   {count:>7} {reason}")
        typer.echo(f"{'finding':<28}{'train +':>9}{'train -':>9}{'test +':>9}{'test -':>9}")
        train, test = data.count_labels("train"), data.count_labels("test")
        for j, finding in enumerate(data.findings):
            counts = (train[0][j], train[1][j], test[0][j], test[1][j])
            typer.echo(f"{finding:<28}" + "".join(f"{count:>9}" for count in counts))


@app.command("version")
def show_version() -> None:
    """Print the version and the digest of the code, which a server must share."""
    from importlib.metadata import version

    from common.model.digest import code_digest

    typer.echo(f"fedcxr {version('fedcxr')}, code {code_digest()}")


if __name__ == "__main__":
    sys.exit(app())
