"""The commands of a site on its way to a centre, and the whole way in one call."""

from __future__ import annotations

from pathlib import Path

from client.join import commands
from client.join.joining import prepare_site
from client.place import SiteFolder
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, invite_site
from tests.command_line import CommandLine

ADDRESS = "127.0.0.1:9443"

SITE = CommandLine(init=commands.init, join=commands.join)
command, refusal = SITE.command, SITE.refusal


def climb(centre: CentreFolder, site: str) -> SiteFolder:
    """Bring a site in, from its invitation to its welcome, in the working folder."""
    invite_site(centre, site)
    prepared = prepare_site(Path(f"{site}.invitation"), Path(site))
    admit_site(centre, prepared.request)
    return prepared.folder


def not_joined(site: SiteFolder) -> None:
    assert not any(path.exists() for path in (site.welcome, site.centre_certificate, site.bundle))
