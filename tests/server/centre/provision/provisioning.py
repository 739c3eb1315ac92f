"""The commands of a centre that bring sites in, and a look at whether one is in."""

from __future__ import annotations

from pathlib import Path

from server.centre import provision_commands
from server.centre.folder import CentreFolder
from server.centre.provision import open_registry
from tests.command_line import CommandLine

ADDRESS = "127.0.0.1:9443"
KEYS = {"ca.key", "ca.crt", "server.key", "server.crt", "centre.key", "admin.token", "superexec.secret"}

NAMES = ("init", "invite", "admit", "revoke", "sites", "renew")
CENTRE = CommandLine(**{name: getattr(provision_commands, name) for name in NAMES})
command, refusal = CENTRE.command, CENTRE.refusal


def nobody_admitted(centre: CentreFolder) -> None:
    with open_registry(centre) as registry:
        assert not [site for site in registry.sites() if site.state == "admitted"]
    assert not list(Path().glob("*.welcome"))
