"""``fedcxr-site init`` and ``fedcxr-site join``, mounted in `client.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.console import fail_clearly

Place = Annotated[Path, typer.Argument(help="The site's site.toml, or the folder that holds it.")]


def init(
    invitation: Annotated[Path, typer.Argument(help="SITE.invitation, as the centre sent it.")],
    folder: Annotated[
        Path | None,
        typer.Argument(help="The site's folder; else this one if it holds site.toml, or one of its name."),
    ] = None,
) -> None:
    """Answer a centre's invitation: make this site's folder, its own keys, and a request to send back.

    The keys are made here and stay here; the request holds their public halves only. site.toml and
    policy.toml that are there are kept. A site that has joined already makes a new node key, which
    counts from the centre's next welcome on.
    """
    with fail_clearly():
        from client.join.joining import prepare_site

        made = prepare_site(invitation, folder)
        kept = f"; kept as they were: {', '.join(made.kept)}" if made.kept else ""
        typer.echo(f"Site {made.invitation.site} in {made.folder.root}")
        typer.echo(f"Written: {', '.join(made.written)}{kept}")
        typer.echo(f"Centre:  {made.invitation.centre} at {made.invitation.address}")
        typer.echo("\nLet the centre read out its fingerprint over the telephone. Go on only if it is:")
        typer.echo(f"  {made.centre_fingerprint}")
        typer.echo("\nRead out this site's fingerprint when the centre has the request:")
        typer.echo(f"  {made.keys_fingerprint}")
        if made.replaces_keys:
            typer.echo("\nThere is a new node key. The old one is used until the centre's welcome is here.")
        typer.echo("\nNext:")
        typer.echo(f"  1. Send {made.request} to the centre. It holds no private key.")
        typer.echo(f"  2. Look through {made.folder.settings} and {made.folder.policy}.")
        typer.echo(f"  3. With the centre's answer: fedcxr-site join {made.invitation.site}.welcome "
                   f"{made.folder.root}")  # fmt: skip


def join(
    welcome: Annotated[Path, typer.Argument(help="SITE.welcome, the centre's answer to the request.")],
    place: Place = Path("site.toml"),
) -> None:
    """Check the centre's answer and keep it: its address, certificate and key, and the app bundle.

    It must be signed by the centre of the invitation, for this site and these keys. Nothing of the
    bundle runs before it is approved.
    """
    with fail_clearly():
        from client.join.joining import accept_welcome
        from client.place import SiteFolder
        from common.code import code_digest

        folder = SiteFolder.of(place)
        joined = accept_welcome(welcome, folder)
        typer.echo(f"Site {joined.site} has joined {joined.centre} at {joined.address}")
        typer.echo(f"App bundle, not yet approved: sha256 {joined.bundle_sha256}")
        if joined.code_digest != code_digest():
            typer.echo("The centre runs other code than is installed here: install the same version of "
                       "fedcxr before you approve.")  # fmt: skip
        typer.echo("\nNext:")
        for step in ("doctor", "index", "rehearse", "train-local", "approve", "start"):
            typer.echo(f"  fedcxr-site {step} {folder.root}")
