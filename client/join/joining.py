"""How a site comes to know a centre: invitation, keys, request, welcome.

The site trusts what the invitation says once a person has compared its fingerprint by telephone;
from then on everything of the centre must fit that certificate and that key.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.join.keys import load_keys, next_node_key, prepare_keys, take_next_key
from client.join.site_template import site_text
from client.place import SiteFolder
from common.certificate import centre_key_in, check_dates, fingerprint
from common.credentials import Invitation, Request, WelcomeFile, writing_in
from common.errors import CredentialError, FedcxrError, SignatureError
from common.files import write_atomic
from common.overrides import read_toml


@dataclass(frozen=True)
class Welcome:
    """What the site knows of the centre it has joined."""

    site: str
    centre: str
    address: str
    """HOST:PORT to dial."""
    centre_key: str
    """Signs what the centre asks for."""
    certificate: str
    """The centre's CA certificate, PEM."""
    bundle_sha256: str
    code_digest: str
    when: float = 0.0
    """When the centre wrote it, seconds since 1970."""


@dataclass(frozen=True)
class Prepared:
    """What ``init`` has made."""

    folder: SiteFolder
    invitation: Invitation
    request: Path
    centre_fingerprint: str
    keys_fingerprint: str
    written: tuple[str, ...]
    kept: tuple[str, ...]
    replaces_keys: bool
    """The site has joined already: its new node key counts from the next welcome on."""


@dataclass(frozen=True)
class Forgotten:
    """What ``leave`` has removed, and what it has left alone."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def prepare_site(invitation: Path, folder: Path | None = None, now: float | None = None) -> Prepared:
    """Make a site's folder and keys, and the request that answers an invitation.

    What is there is kept: settings, policy, keys that wait for an answer. A site that has joined
    makes a new node key, which counts once the centre has admitted it.

    Raises:
        CredentialError: if the invitation is damaged, too old or for another site, or the folder
            belongs to another centre.
        SignatureError: if the centre it names did not sign it.
    """
    invited = Invitation.read(invitation)
    _check_date(invited, invitation.name, now)
    root = folder or (Path() if Path("site.toml").is_file() else Path(invited.site))
    if root.exists() and not root.is_dir():
        raise CredentialError(f"{root} is not a folder", fix="name another one")
    place = SiteFolder(root.resolve())
    _check_name(place, invited.site)
    joined = _check_same_centre(place, invited)
    request = place.root / f"{invited.site}.request"
    _check_replaceable(request, invited.site)

    written: list[str] = []
    kept: list[str] = []
    texts = {place.settings: lambda: site_text(invited.site), place.policy: _policy_text}
    with writing_in(place.root):
        for path, text in texts.items():
            (kept if path.exists() else written).append(path.name)
            if not path.exists():
                write_atomic(path, text().encode())
        write_atomic(place.invitation, invitation.read_bytes())
        keys, made = prepare_keys(place, joined)
    written += [f"keys/{path.name}" for path in made]
    asked = Request(
        site=invited.site,
        node_key=keys.node_key.decode(),
        signing_key=keys.signing_key,
        secret=invited.secret,
    )
    with writing_in(place.root):
        asked.proved(keys.node).write(request, keys.signing)
    written.append(request.name)
    return Prepared(
        folder=place,
        invitation=invited,
        request=request,
        centre_fingerprint=fingerprint(invited.certificate),
        keys_fingerprint=keys.fingerprint,
        written=tuple(written),
        kept=tuple(kept),
        replaces_keys=joined,
    )


def accept_welcome(file: Path, folder: SiteFolder) -> Welcome:
    """Check the centre's answer and keep it: address, certificate, key and app bundle.

    Nothing of the bundle runs before ``approve``. A later welcome of the same centre, with a newer
    bundle or address, is taken in the same way.

    Raises:
        CredentialError: if it is damaged, for another site or other keys, or of another centre.
        SignatureError: if the centre of the invitation did not sign it.
    """
    certificate = _known_certificate(folder)
    welcome = WelcomeFile.read(file, centre_key_in(certificate))
    if (name := _name(folder)) not in (None, welcome.site):
        raise CredentialError(
            f"{file.name} is for another site",
            found=f"{welcome.site}, not {name!r:.60}",
            fix="use the file for this site",
        )
    if welcome.certificate != certificate:
        raise CredentialError(
            f"{file.name} brings another CA certificate than the invitation",
            fix="ask the centre for a new invitation: fedcxr-site leave, then fedcxr-site init",
        )
    check_dates(welcome.certificate, "the centre's CA certificate")
    pending = _admitted_keys(folder, welcome, file.name)
    if not pending and (newest := _latest(folder)) > welcome.when:
        raise CredentialError(
            f"{file.name} is older than the welcome that is here",
            found=f"{_day(welcome.when)}, not {_day(newest)}",
            fix="use the latest one",
        )
    bundle = welcome.bundle_bytes()
    with writing_in(folder.root):
        data = file.read_bytes()
        write_atomic(folder.bundle, bundle)
        write_atomic(folder.centre_certificate, certificate.encode())
        if pending:
            take_next_key(folder)
        # Last: without it the site has not joined, and join can be done again.
        write_atomic(folder.welcome, data)
        if not next_node_key(folder).exists():
            folder.invitation.unlink(missing_ok=True)
    return _facts(welcome)


def load_welcome(folder: SiteFolder) -> Welcome:
    """Return what is known of the centre this site has joined.

    Raises:
        CredentialError: if it has not joined, or what is kept of the centre was damaged.
        SignatureError: if the welcome was changed.
    """
    if not folder.welcome.is_file():
        raise CredentialError(
            "this site has not joined a centre", fix="fedcxr-site join WELCOME, the centre's answer"
        )
    try:
        welcome = WelcomeFile.read(folder.welcome)
    except (CredentialError, SignatureError) as error:
        raise type(error)(error.problem, found=error.found, fix="fedcxr-site join WELCOME again") from None
    try:
        certificate = folder.centre_certificate.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        certificate = ""
    if certificate != welcome.certificate:
        raise CredentialError(
            f"{folder.centre_certificate.name} is missing or is not the one of the welcome",
            fix="fedcxr-site join WELCOME again",
        )
    return _facts(welcome)


def forget_centre(folder: SiteFolder) -> Forgotten:
    """Remove what lets this site talk to its centre; what was done stays provable.

    The signing key stays: the audit and the approvals are signed with it.
    """
    gone = [
        folder.node_key,
        next_node_key(folder),
        folder.invitation,
        folder.welcome,
        folder.centre_certificate,
        folder.bundle,
        *(path for path in sorted(folder.root.glob("*.request")) if _is_request(path)),
    ]
    removed = []
    for path in gone:
        if path.exists():
            path.unlink()
            removed.append(path.relative_to(folder.root).as_posix())
    left = (folder.settings, folder.policy, folder.signing_key, folder.audit, folder.approvals)
    kept = [path.relative_to(folder.root).as_posix() for path in left if path.exists()]
    return Forgotten(tuple(removed), (*kept, "local models and caches"))


def _known_certificate(folder: SiteFolder) -> str:
    """Return the CA certificate, which names the centre's key too, that a person has compared."""
    if folder.invitation.is_file():
        return Invitation.read(folder.invitation).certificate
    if folder.centre_certificate.is_file():
        return folder.centre_certificate.read_text(encoding="utf-8", errors="replace")
    if folder.welcome.is_file():
        return WelcomeFile.read(folder.welcome).certificate
    raise CredentialError(
        "this site has no invitation to join by", fix="first: fedcxr-site init INVITATION, in this folder"
    )


def _latest(folder: SiteFolder) -> float:
    """Return when the welcome in use was written; 0 where there is none that can be read."""
    try:
        return WelcomeFile.read(folder.welcome).when
    except FedcxrError:
        return 0.0


def _admitted_keys(folder: SiteFolder, welcome: WelcomeFile, name: str) -> bool:
    """Tell whether the node key that waits was admitted, not the one in use."""
    waiting = next_node_key(folder).exists()
    in_use = folder.node_key.exists() or not waiting
    for pending in (*([True] if waiting else []), *([False] if in_use else [])):
        if load_keys(folder, pending).fingerprint == welcome.keys_fingerprint:
            return pending
    raise CredentialError(
        f"{name} is for other keys than this site's",
        found=f"admitted: {welcome.keys_fingerprint}",
        fix="send this folder's .request to the centre, or use the welcome that answers it",
    )


def _check_date(invited: Invitation, name: str, now: float | None) -> None:
    now = time.time() if now is None else now
    if now > invited.expires:
        raise CredentialError(
            f"{name} has expired",
            found=f"it ended {_day(invited.expires)}, this machine's clock says {_day(now)}",
            fix="ask the centre for another one",
        )
    check_dates(invited.certificate, "the centre's CA certificate", datetime.fromtimestamp(now, UTC))


def _name(folder: SiteFolder) -> object:
    """Return the name in site.toml; None where there is no site.toml."""
    return read_toml(folder.settings).get("name", "") if folder.settings.exists() else None


def _check_name(folder: SiteFolder, site: str) -> None:
    if (name := _name(folder)) not in (None, site):
        raise CredentialError(
            f"the centre calls this site {site}, site.toml does not",
            found=f"name = {name!r:.60}",
            fix=f'set name = "{site}" in {folder.settings}, or ask for an invitation of that name',
        )


def _check_same_centre(folder: SiteFolder, invited: Invitation) -> bool:
    """Refuse a folder that another centre knows; tell whether this one has been joined."""
    joined = folder.welcome.is_file()
    if (joined or folder.invitation.is_file()) and _known_certificate(folder) != invited.certificate:
        raise CredentialError(
            f"{folder.root} belongs to a centre already, and not to this one",
            found=f"invitation of {invited.centre} at {invited.address}",
            fix=f"name another folder, or first: fedcxr-site leave {folder.root}",
        )
    return joined


def _check_replaceable(request: Path, site: str) -> None:
    if request.exists() and not _is_request(request):
        raise CredentialError(f"{request} is there and is not a request of site {site}", fix="move it away")


def _is_request(path: Path) -> bool:
    try:
        Request.read(path)
    except FedcxrError:
        return False
    return True


def _policy_text() -> str:
    from client.gate.policy import policy_text

    return policy_text()


def _facts(welcome: WelcomeFile) -> Welcome:
    return Welcome(
        site=welcome.site,
        centre=welcome.centre,
        address=welcome.address,
        centre_key=welcome.centre_key,
        certificate=welcome.certificate,
        bundle_sha256=welcome.bundle_sha256,
        code_digest=welcome.code_digest,
        when=welcome.when,
    )


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
