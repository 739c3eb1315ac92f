"""How a centre is set up, and how sites become part of it: init, invite, admit, revoke, renew.

Nobody's private key ever travels. An invitation carries who the centre is and a secret that is used
once; the site answers with its own public keys; the welcome is signed by the centre. People compare
two fingerprints by telephone, and that is all they have to trust.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from common.certificate import centre_key_in, fingerprint, load_certificate
from common.code import code_digest
from common.credentials import Invitation, Request, WelcomeFile, keys_fingerprint, writing_in
from common.errors import ConfigError, CredentialError
from common.files import write_atomic
from common.signing import create_signing_key, load_signing_key, public_text
from server.centre.centre_text import centre_text
from server.centre.certificates import (
    Issued,
    create_authority,
    dialled,
    hosts_in,
    hosts_of,
    issue_server,
    split_address,
)
from server.centre.folder import CentreConfig, CentreFolder
from server.centre.registry import Registry


@dataclass(frozen=True)
class Invited:
    """An invitation that was written."""

    site: str
    path: Path
    expires: float
    replaces_keys: bool
    """The site is admitted already: its node key is replaced when it answers."""


@dataclass(frozen=True)
class Admitted:
    """A welcome that was written."""

    site: str
    path: Path
    keys_fingerprint: str
    bundle_sha256: str
    again: bool
    """These very keys were admitted before; this is another copy, with today's app bundle."""


def init_centre(
    root: Path, name: str, address: str, listen: str = "", admin: str = "", more: Sequence[str] = ()
) -> CentreFolder:
    """Make a centre's folder: settings, CA, server certificate, keys, secrets and an empty registry.

    Raises:
        ConfigError: if a name or address is not one, or ``admin`` is not on loopback.
        CredentialError: if a centre, or what is left of one, is there already.
    """
    folder = CentreFolder(root.resolve())
    config = _settings(name, address, listen, admin)
    hosts = hosts_of(config.address, config.listen, more)
    with writing_in(folder.root):
        _refuse_remains(folder)
        _write_keys(folder, config.name, hosts)
        Registry(folder.registry).close()
        # Last: a folder with centre.toml is a whole one.
        write_atomic(folder.root / "centre.toml", centre_text(config).encode())
    return folder


def invite_site(
    folder: CentreFolder, site: str, out: Path | None = None, clock: Callable[[], float] = time.time
) -> Invited:
    """Write a signed invitation for a site; it can be answered once, within 14 days.

    Raises:
        CredentialError: if the name is not one a site can have, or the file is there.
    """
    path = _free(out or Path(f"{site}.invitation"))
    config, certificate, key = folder.config(), _certificate(folder), _centre_key(folder)
    with open_registry(folder, clock) as registry:
        secret = registry.invite(site)
        now = registry.site(site)
        invitation = Invitation(
            site=site,
            centre=config.name,
            address=dialled(config.address),
            certificate=certificate,
            centre_key=public_text(key),
            secret=secret,
            expires=now.invitation_expires or 0.0,
        )
        with writing_in(path.absolute().parent):
            invitation.write(path, key)
        return Invited(site, path, invitation.expires, now.state == "admitted")


def admit_site(
    folder: CentreFolder, file: Path, out: Path | None = None, clock: Callable[[], float] = time.time
) -> Admitted:
    """Check a site's request, admit its keys and write the welcome.

    The same request a second time gives the same site another welcome, with today's app bundle;
    that is how a lost one is replaced.

    Raises:
        CredentialError: if the request is damaged, its invitation is unknown, used, void or too
            old, or its keys are not its own.
        SignatureError: if it is not signed by both keys it brings.
    """
    from server.centre.bundle import build_bundle

    request = Request.read(file)
    config, certificate, key = folder.config(), _certificate(folder), _centre_key(folder)
    path = _free(out or Path(f"{request.site}.welcome"))
    bundle = build_bundle()
    welcome = WelcomeFile(
        site=request.site,
        centre=config.name,
        address=dialled(config.address),
        certificate=certificate,
        centre_key=public_text(key),
        keys_fingerprint=request.fingerprint,
        bundle=base64.b64encode(bundle).decode(),
        bundle_sha256=hashlib.sha256(bundle).hexdigest(),
        code_digest=code_digest(),
        when=clock(),
    )
    with open_registry(folder, clock) as registry:
        again = _is_admitted(registry, request)
        try:
            registry.admit(request.site, request.node_key.encode(), request.signing_key, request.secret)
        except CredentialError:
            if not again:
                raise
    with writing_in(path.absolute().parent):
        welcome.write(path, key)
    return Admitted(request.site, path, request.fingerprint, welcome.bundle_sha256, again)


def renew_server(folder: CentreFolder, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Make a new server key and certificate from the same CA; return the hosts it stands for.

    It stands for what centre.toml says now, for ``more``, and for what the old one stood for.

    Raises:
        CredentialError: if the CA is missing, damaged, over, or not made for one of the hosts.
    """
    config = folder.config()
    before: tuple[str, ...] = ()
    if folder.key("server.crt").is_file():
        before = hosts_in(folder.key("server.crt").read_bytes())
    hosts = hosts_of(config.address, config.listen, (*more, *before))
    authority = Issued(_certificate(folder).encode(), _private(folder.key("ca.key")))
    server = issue_server(authority, config.name, hosts)
    with writing_in(folder.root):
        # Cut off between the two the pair does not fit, and another renew mends it.
        write_atomic(folder.key("server.key"), server.key)
        write_atomic(folder.key("server.crt"), server.certificate)
    return hosts


def open_registry(folder: CentreFolder, clock: Callable[[], float] = time.time) -> Registry:
    """Open the registry of a centre that has one.

    Raises:
        CredentialError: if it is missing: an empty one would shut every site out.
    """
    if not folder.registry.is_file():
        raise CredentialError(f"{folder.registry} is missing", fix="restore it from a backup")
    return Registry(folder.registry, clock)


def centre_fingerprint(folder: CentreFolder) -> str:
    """Return what people compare: the fingerprint of the CA, which vouches for the centre's key too."""
    return fingerprint(_certificate(folder))


def site_fingerprint(node_key: bytes, signing_key: str) -> str:
    """Return the fingerprint of a site's keys as the site shows it; empty before it has any."""
    return keys_fingerprint(node_key, signing_key) if node_key else ""


def _refuse_remains(folder: CentreFolder) -> None:
    keys = folder.key("ca.key").parent
    for path in (folder.root / "centre.toml", keys, folder.registry):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise CredentialError(
                f"{folder.root} holds a centre already, or one that was begun",
                found=path.name,
                fix="name another folder, or move that away if it is not in use",
            )


def _write_keys(folder: CentreFolder, name: str, hosts: Sequence[str]) -> None:
    keys = folder.key("ca.key").parent
    keys.mkdir(parents=True, exist_ok=True)
    keys.chmod(0o700)
    centre_key = public_text(create_signing_key(folder.key("centre.key")))
    authority = create_authority(name, hosts, centre_key)
    server = issue_server(authority, name, hosts)
    for file, data in {
        "ca.key": authority.key,
        "ca.crt": authority.certificate,
        "server.key": server.key,
        "server.crt": server.certificate,
        # Flower takes every byte of the file as the secret: no line end.
        "superexec.secret": secrets.token_urlsafe(48).encode(),
        "admin.token": secrets.token_urlsafe(48).encode(),
    }.items():
        write_atomic(folder.key(file), data)


def _settings(name: str, address: str, listen: str, admin: str) -> CentreConfig:
    address = dialled(address)
    host, port = split_address(address)
    listen = listen or (f"[::]:{port}" if ":" in host else f"0.0.0.0:{port}")
    admin = admin or f"127.0.0.1:{port + 1 if port < 65535 else port - 1}"
    split_address(listen)
    admin_host, admin_port = split_address(admin)
    try:
        local = admin_host == "localhost" or ipaddress.ip_address(admin_host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            "the admin address must be on loopback: it can start runs",
            found=admin,
            fix="--admin 127.0.0.1:9444",
        )
    if admin_port == split_address(listen)[1]:
        raise ConfigError(
            "the admin address needs a port of its own", found=admin, fix="--admin 127.0.0.1:PORT"
        )
    try:
        return CentreConfig(name=name, address=address, listen=listen, admin=admin)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']}", found=repr(first["input"])[:80]) from None


def _is_admitted(registry: Registry, request: Request) -> bool:
    """Tell whether this very site with these very keys is admitted now."""
    known = registry.by_node_key(request.node_key.encode())
    return known is not None and (known.name, known.state, known.signing_key) == (
        request.site,
        "admitted",
        request.signing_key,
    )


def _free(path: Path) -> Path:
    if path.exists():
        raise CredentialError(f"{path} exists already", fix="move it away, or name another file with --out")
    if not path.absolute().parent.is_dir():
        raise CredentialError(f"there is no folder {path.parent}", fix="make it, or name another with --out")
    return path


def _certificate(folder: CentreFolder) -> str:
    try:
        pem = folder.key("ca.crt").read_text(encoding="ascii")
    except (OSError, UnicodeError):
        raise CredentialError("ca.crt cannot be read", fix="restore keys/ from a backup") from None
    load_certificate(pem, "ca.crt")
    return pem


def _centre_key(folder: CentreFolder) -> Ed25519PrivateKey:
    key = load_signing_key(folder.key("centre.key"))
    if centre_key_in(_certificate(folder)) != public_text(key):
        raise CredentialError(
            "centre.key is not the key that ca.crt vouches for", fix="restore keys/ from one backup"
        )
    return key


def _private(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode & 0o777
        data = path.read_bytes()
    except OSError as error:
        raise CredentialError(
            f"{path.name} cannot be read", found=error.strerror or "", fix="restore keys/ from a backup"
        ) from None
    if mode & 0o077 and os.name == "posix":
        raise CredentialError(
            f"{path.name} can be read by others", found=f"mode {mode:o}", fix=f"chmod 600 {path}"
        )
    return data
