"""A site's files: settings, policy, keys, and what it holds of the centre."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from client.join.checks.case import Case, Outcome, broken, failure, ok, warning
from client.join.checks.places import is_remote
from client.join.keys import load_node_key
from client.site import SiteConfig
from common.certificate import check_dates, days_left
from common.credentials import Invitation, WelcomeFile, keys_fingerprint, node_key_bytes
from common.errors import CredentialError, FedcxrError
from common.signing import load_signing_key, public_text


def check_settings(case: Case) -> Iterator[Outcome]:
    """site.toml: readable, valid, and of the name the centre knows."""
    site = case.site
    if not isinstance(site, SiteConfig):
        yield broken("site.toml", site, "correct site.toml; docs/site.md explains every key")
        return
    centre = case.centre
    if centre is not None and centre.site != site.name:
        yield failure(
            "site.toml",
            f'site.toml says name = "{site.name}" and the centre knows this site as "{centre.site}".',
            f'set name = "{centre.site}" in site.toml',
        )
        return
    yield ok("site.toml", f'site "{site.name}", {len(site.labels)} findings with a column of their own.')


def check_keys(case: Case) -> Iterator[Outcome]:
    """Both private keys, the folder they lie in, and whether the centre admitted them."""
    node = signing = None
    try:
        node = load_node_key(case.folder.node_key)
    except CredentialError as error:
        yield _key_failure("node key", case.folder.node_key, error)
    try:
        signing = load_signing_key(case.folder.signing_key)
    except CredentialError as error:
        yield _key_failure("signing key", case.folder.signing_key, error)
    yield from _keys_folder(case.folder.node_key.parent)
    if node is None or signing is None:
        return
    yield ok("keys", "both are there and only their owner can read them.")
    if isinstance(case.welcome, WelcomeFile):
        here = keys_fingerprint(node_key_bytes(node.public_key()), public_text(signing))
        if here != case.welcome.keys_fingerprint:
            yield failure(
                "admitted keys",
                f"the keys here are not those the centre admitted: here {here[:23]}..., admitted "
                f"{case.welcome.keys_fingerprint[:23]}...",
                "restore this site's own keys from its backup, or begin anew: fedcxr-site leave, then init "
                "with a new invitation",
            )
        else:
            yield ok("admitted keys", f"the centre admitted these keys ({here[:23]}...).")


def check_welcome(case: Case) -> Iterator[Outcome]:
    """The centre's welcome and its CA certificate."""
    welcome = case.welcome
    if welcome is None:
        yield from _not_yet(case)
        return
    if not isinstance(welcome, WelcomeFile):
        yield broken("welcome", welcome, "fedcxr-site join again with the file the centre sent")
        return
    if isinstance(case.site, SiteConfig) and welcome.site != case.site.name:
        yield failure(
            "welcome", f'the welcome is for site "{welcome.site}".', "join with the welcome for this site"
        )
    else:
        yield ok("welcome", f"signed by centre {welcome.centre}, which answers at {welcome.address}.")
    yield from _authority(case, welcome)


def _not_yet(case: Case) -> Iterator[Outcome]:
    invitation = case.invitation
    if isinstance(invitation, FedcxrError):
        yield broken("invitation", invitation, "ask the centre for a new invitation")
    elif isinstance(invitation, Invitation):
        if case.around.now() > invitation.expires:
            yield failure(
                "invitation",
                f"the invitation of centre {invitation.centre} has expired.",
                "ask the centre for a new one; if it is new, set this machine's clock",
            )
            return
        yield warning(
            "welcome",
            f"centre {invitation.centre} has not answered this site's request yet.",
            f"send it {invitation.site}.request; when the welcome comes: fedcxr-site join WELCOME",
        )
    else:
        yield failure(
            "welcome",
            "this site knows no centre: there is neither a welcome nor an invitation.",
            "fedcxr-site init INVITATION, or fedcxr-site join WELCOME",
        )


def _authority(case: Case, welcome: WelcomeFile) -> Iterator[Outcome]:
    file = case.folder.centre_certificate
    try:
        here = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        here = ""
    if here != welcome.certificate:
        yield failure(
            "CA certificate",
            f"{file.name} is {'not the one of the welcome' if here else 'missing'}: the welcome may be of "
            "another centre.",
            "fedcxr-site join again with the file the centre sent",
        )
        return
    now = datetime.fromtimestamp(case.around.now(), UTC)
    try:
        check_dates(here, "the centre's CA certificate", now)
    except CredentialError as error:
        yield broken(
            "CA certificate", error, "set this machine's clock, or ask the centre for a new invitation"
        )
        return
    left = days_left(here, now)
    if left < 60:
        yield warning(
            "CA certificate",
            f"the centre's CA certificate ends in {left:.0f} days.",
            "ask the centre when it sends new invitations",
        )
    else:
        yield ok("CA certificate", f"the welcome's, good for {left / 365:.0f} more years.")


def _key_failure(check: str, file: Path, error: CredentialError) -> Outcome:
    if not file.exists():
        return failure(
            check,
            f"{file.name} is missing.",
            f"restore {file} from the site's backup, or begin anew with init",
        )
    found = f": {error.found}" if error.found else ""
    return failure(check, f"{error.problem}{found}.", error.fix)


def _keys_folder(folder: Path) -> Iterator[Outcome]:
    if not folder.is_dir():
        return
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022 or folder.parent.stat().st_mode & stat.S_IWOTH:
        open_one = folder if mode & 0o022 else folder.parent
        yield failure(
            "keys folder",
            f"other accounts can put files into {open_one} (mode {stat.S_IMODE(open_one.stat().st_mode):o}).",
            f"chmod 700 {open_one}",
        )
    elif mode & 0o055:
        yield warning(
            "keys folder", f"other accounts can look into {folder} (mode {mode:o}).", f"chmod 700 {folder}"
        )
    if status.st_uid != os.geteuid():
        yield warning(
            "keys folder",
            f"{folder} belongs to account {status.st_uid} and this is account {os.geteuid()}.",
            "run fedcxr-site as the account that owns the site's folder",
        )
    if is_remote(folder):
        yield warning(
            "keys folder",
            f"{folder} lies on a network share: whoever runs that share holds this site's keys.",
            "move the site's folder to a local disk",
        )
    shared = next((parent for parent in folder.parents if (parent / ".git").exists()), None)
    if shared is not None:
        yield warning(
            "keys folder",
            f"{folder} lies in a git repository, from where keys get copied.",
            "move the site's folder out of it",
        )
