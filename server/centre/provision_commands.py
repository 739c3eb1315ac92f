"""``fedcxr-server init``, ``invite``, ``admit``, ``revoke``, ``sites`` and ``renew``."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console import fail_clearly

if TYPE_CHECKING:
    from server.centre.registry import RegisteredSite

Centre = Annotated[
    Path | None,
    typer.Option("--centre", help="The centre's folder; else FEDCXR_CENTRE, or the working folder."),
]
Site = Annotated[str, typer.Argument(help="The site's name: small letters, digits, - and _.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--san", help="A further host name or IP address that sites may dial; repeatable."),
]


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make; none of a centre may be there.")],
    name: Annotated[str, typer.Option("--name", help="The centre's name: small letters, digits, - and _.")],
    address: Annotated[str, typer.Option("--address", help="HOST:PORT that sites dial.")],
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT to bind; else every address, at that port.")
    ] = "",
    admin: Annotated[
        str, typer.Option("--admin", help="HOST:PORT on loopback for the centre itself; else the next port.")
    ] = "",
    san: Names = None,
) -> None:
    """Set up a coordinating centre: settings, a private CA, a server certificate, keys, a registry.

    The CA is good for the hosts named here and nothing else. Keep a backup of the whole folder
    where nobody else can read it: whoever has keys/ can speak for the centre.
    """
    with fail_clearly():
        from server.centre.certificates import hosts_in, valid_until
        from server.centre.provision import centre_fingerprint, init_centre

        made = init_centre(folder, name, address, listen, admin, san or ())
        config = made.config()
        certificate = made.key("server.crt").read_bytes()
        typer.echo(f"Centre {config.name} in {made.root}")
        typer.echo(f"Sites dial {config.address}; this machine binds {config.listen}, and "
                   f"{config.admin} for itself")  # fmt: skip
        typer.echo(
            f"Certificate for {', '.join(hosts_in(certificate))}, until {valid_until(certificate):%Y-%m-%d}"
        )
        typer.echo("\nFingerprint, to read out to every site over the telephone:")
        typer.echo(f"  {centre_fingerprint(made)}")
        typer.echo("\nNext, for every site:")
        typer.echo(f"  fedcxr-server invite SITE --centre {made.root}")
        typer.echo("and when all are admitted, or before:")
        typer.echo(f"  fedcxr-server start --centre {made.root}")


def invite(
    site: Site,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; else SITE.invitation in the working folder.")
    ] = None,
    centre: Centre = None,
) -> None:
    """Write an invitation for a site. It can be answered once, within 14 days.

    It says who the centre is and carries a secret, so send it to the person meant and to nobody
    else. For a site that is admitted it is an invitation to bring a new node key.
    """
    with fail_clearly():
        from server.centre.folder import CentreFolder
        from server.centre.provision import centre_fingerprint, invite_site

        folder = CentreFolder.find(centre)
        invited = invite_site(folder, site, out)
        typer.echo(f"Invitation for {site}: {invited.path.resolve()}, until {_day(invited.expires)}")
        if invited.replaces_keys:
            typer.echo(f"{site} is admitted: its node key stays good until it answers with a new one.")
        typer.echo("\nFingerprint to read out over the telephone:")
        typer.echo(f"  {centre_fingerprint(folder)}")
        typer.echo(f"\nNext: send the file to {site}, whose answer is {site}.request. Then:")
        typer.echo(f"  fedcxr-server admit {site}.request --centre {folder.root}")


def admit(
    request: Annotated[Path, typer.Argument(help="SITE.request, as the site sent it.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; else SITE.welcome in the working folder.")
    ] = None,
    centre: Centre = None,
) -> None:
    """Check a site's request, admit its keys and write the welcome to send back.

    The request must answer an open invitation and be signed by the keys it brings. The same
    request again gives another welcome, with the app bundle of the code installed now.
    """
    with fail_clearly():
        from server.centre.folder import CentreFolder
        from server.centre.provision import admit_site

        folder = CentreFolder.find(centre)
        admitted = admit_site(folder, request, out)
        done = "is admitted already; another welcome" if admitted.again else "is admitted. Its welcome"
        typer.echo(f"Site {admitted.site} {done}: {admitted.path.resolve()}")
        typer.echo(f"App bundle: sha256 {admitted.bundle_sha256}")
        typer.echo("\nFingerprint of its keys. Let the site read out its own over the telephone:")
        typer.echo(f"  {admitted.keys_fingerprint}")
        typer.echo("If that differs, somebody else answered the invitation. Shut them out at once:")
        typer.echo(f"  fedcxr-server revoke {admitted.site} --centre {folder.root}")
        typer.echo(f"\nNext: send {admitted.path.name} to {admitted.site}. It is not secret.")


def revoke(site: Site, centre: Centre = None) -> None:
    """Shut a site out, at once: a running centre refuses its calls within seconds.

    Its node key is never admitted again. It can come back with a new one: invite it again.
    """
    with fail_clearly():
        from server.centre.folder import CentreFolder
        from server.centre.provision import open_registry

        with open_registry(CentreFolder.find(centre)) as registry:
            done = registry.revoke(site)
        typer.echo(f"Site {site} {'is revoked' if done else 'was revoked already'}.")


def sites(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False, centre: Centre = None
) -> None:
    """List the sites: invited, admitted or revoked, and when each was last heard of."""
    with fail_clearly(as_json):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from server.centre.folder import CentreFolder
        from server.centre.provision import open_registry, site_fingerprint

        with open_registry(CentreFolder.find(centre)) as registry:
            known = registry.sites()
        now = time.time()
        if as_json:
            facts = [
                {
                    "site": site.name,
                    "state": site.state,
                    "node": str(site.node_id or ""),
                    "heard_seconds": None if site.heard_at is None else round(now - site.heard_at, 1),
                    "fingerprint": site_fingerprint(site.node_key, site.signing_key),
                }
                for site in known
            ]
            typer.echo(json.dumps(facts))
            return
        if not known:
            typer.echo("No site has been invited yet: fedcxr-server invite SITE")
            return
        table = Table("site", "state", "node", "last heard", "fingerprint of its keys")
        for site in known:
            # Two halves: a line of 95 characters is for no terminal.
            whole = site_fingerprint(site.node_key, site.signing_key)
            halves = f"{whole[:47]}\n{whole[48:]}" if whole else "-"
            heard = "-" if site.heard_at is None else _ago(now - site.heard_at)
            # As Text: rich reads the ":CD:" of a fingerprint as the name of a picture.
            cells = (site.name, _state(site, now), str(site.node_id or "-"), heard, halves)
            table.add_row(*map(Text, cells))
        console = Console()
        console.width = max(console.width, 140 if not console.is_terminal else 0)
        console.print(table)


def renew(san: Names = None, centre: Centre = None) -> None:
    """Make a new server key and certificate from the same CA. Sites need nothing new.

    Do it within the year, and after a change of address in centre.toml; then start the centre
    again. The CA lasts ten years and is good for the hosts named at init. To replace it, or after
    a theft of keys/, set up a new centre (init in a new folder), invite every site again, and let
    each leave the old one before it answers.
    """
    with fail_clearly():
        from server.centre.certificates import valid_until
        from server.centre.folder import CentreFolder
        from server.centre.provision import centre_fingerprint, renew_server

        folder = CentreFolder.find(centre)
        hosts = renew_server(folder, san or ())
        ends = valid_until(folder.key("server.crt").read_bytes())
        typer.echo(f"New server certificate for {', '.join(hosts)}, until {ends:%Y-%m-%d}")
        typer.echo(f"The fingerprint sites know stays {centre_fingerprint(folder)}")
        typer.echo("Next: stop and start the centre.")


def _state(site: RegisteredSite, now: float) -> str:
    expires = site.invitation_expires
    if expires is None:
        return site.state
    invited = f"invited, until {_day(expires)}" if expires > now else f"invited, expired {_day(expires)}"
    return invited if site.state == "invited" else f"{site.state}; {invited}"


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"


def _ago(seconds: float) -> str:
    """Say how long ago something was.

    >>> _ago(5.0), _ago(300.0), _ago(90000.0)
    ('just now', '5 min ago', '25 h ago')
    """
    if seconds < 60:
        return "just now"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 172_800 else f"{seconds / 86400:.0f} days ago"
