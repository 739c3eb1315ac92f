"""``fedcxr-server monitor`` and ``password``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.console import fail_clearly

Centre = Annotated[
    Path | None,
    typer.Option("--centre", help="The centre's folder; else FEDCXR_CENTRE, or the working folder."),
]


def monitor(
    run: Annotated[
        str | None, typer.Argument(help="A run's name or folder, to open its page; else all runs.")
    ] = None,
    centre: Centre = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Show the runs in this folder, such as a simulation's.")
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT; else 127.0.0.1:9480, or the next free port.")
    ] = "",
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML with [monitor] and [alerts]; else centre.toml.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="PEM certificate; else the centre's.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its PEM private key.")] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show runs on a web page, while they go on and afterwards; nothing on it can change them.

    It is served to this machine alone. To serve it to others, name an address with --listen: that
    takes a certificate, and a user with a password (fedcxr-server password NAME).
    """
    with fail_clearly():
        from server.monitor.launch import Wanted, launch, prepare

        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        ready = prepare(Wanted(run, centre, runs, listen, config, certificate, key))
        launch(ready, _say, open_browser)


def password(
    name: Annotated[str, typer.Argument(help="The user's name: small letters, digits, '.', - and _.")],
    centre: Centre = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The settings of a monitor without a centre.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the user out instead.")] = False,
) -> None:
    """Give somebody a password for the monitor; it is asked for twice, or read from standard input.

    A monitor that is running takes it at once. Only a hash is kept (Argon2id), in
    keys/monitor-users.toml of the centre, or beside the file that --config names.
    """
    with fail_clearly():
        from common.errors import ConfigError
        from server.centre.folder import CentreFolder
        from server.monitor.launch import users_file
        from server.monitor.users import Users

        if config is not None and centre is not None:
            raise ConfigError("--config and --centre exclude each other")
        if config is not None and not config.is_file():
            raise ConfigError(f"there is no file {config}", fix="write it first; it may be empty")
        users = Users(users_file(None if config else CentreFolder.find(centre), config))
        if remove:
            users.remove(name)
            typer.echo(f"{name} can no longer log in; sessions of {name} are over.")
            return
        new = users.set(name, _ask())
        typer.echo(f"{name} can log in." if new else f"{name} has a new password; older sessions are over.")
        typer.echo(f"Hash in {users.file}")


def _ask() -> str:
    """Return a password typed twice, or the first line of what is piped in."""
    from common.errors import ConfigError

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    from getpass import getpass

    first = getpass("Password: ")
    if getpass("Once more: ") != first:
        raise ConfigError("the two passwords differ", fix="try again")
    return first


def _say(text: str) -> None:
    """Say a line at once, also into a pipe."""
    typer.echo(text)
    sys.stdout.flush()
