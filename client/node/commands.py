"""``fedcxr-site start``, ``status`` and ``leave``, mounted in `client.cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.console import fail_clearly

Place = Annotated[Path, typer.Argument(help="The site's site.toml, or the folder that holds it.")]


def start(place: Place = Path("site.toml")) -> None:
    """Connect this site to its centre and answer what is asked, until Ctrl-C or SIGTERM.

    Two processes run: the worker, which holds data and model, and the node, which talks to the centre.
    Whatever dies is started again. Nothing is asked or answered that was not approved; every
    instruction and every answer stands in the audit.
    """
    with fail_clearly():
        from client.node.start import run_site
        from client.place import SiteFolder

        raise SystemExit(run_site(SiteFolder.of(place), typer.echo))


def status(
    place: Place = Path("site.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether this site runs and is connected, what it was last asked, and what still waits."""
    with fail_clearly(as_json):
        from client.node.status import site_status, status_lines
        from client.place import SiteFolder

        found = site_status(SiteFolder.of(place))
        typer.echo(json.dumps(found) if as_json else "\n".join(status_lines(found)))


def leave(
    place: Place = Path("site.toml"),
    yes: Annotated[bool, typer.Option("--yes", help="Leave without being asked.")] = False,
) -> None:
    """Leave the federation: stop the node and remove what lets this site talk to its centre.

    The audit, the approvals and the key they are signed with stay, so that what was done stays
    provable. Coming back takes a new invitation.
    """
    with fail_clearly():
        from client.join.joining import forget_centre
        from client.node.start import stop_site
        from client.place import SiteFolder

        folder = SiteFolder.of(place)
        if not yes and not typer.confirm(f"Leave the federation with the site in {folder.root}?"):
            raise SystemExit(1)
        if stop_site(folder):
            typer.echo("The node is stopped.")
        gone = forget_centre(folder)
        typer.echo(f"Removed: {', '.join(gone.removed) or 'nothing'}")
        typer.echo(f"Kept:    {', '.join(gone.kept)}")
        typer.echo("Tell the centre: it revokes this site with fedcxr-server revoke.")
