"""The site's own keys: made here, never sent anywhere; only their public halves travel.

    keys/node.key        EC P-384, shows the centre's gateway who calls
    keys/node.next.key   the one that will replace it when the centre has admitted it
    keys/site.key        Ed25519, signs requests, approvals and the head of the audit

The signing key stays for as long as the folder is in use: what it has signed must stay provable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from client.place import SiteFolder
from common.credentials import keys_fingerprint, node_key_bytes
from common.errors import CredentialError
from common.files import sync_folder, write_atomic
from common.signing import create_signing_key, load_signing_key, public_text


@dataclass(frozen=True)
class SiteKeys:
    """Both private keys of a site."""

    node: ec.EllipticCurvePrivateKey
    signing: Ed25519PrivateKey

    @property
    def node_key(self) -> bytes:
        """The node's public key as Flower writes it."""
        return node_key_bytes(self.node.public_key())

    @property
    def signing_key(self) -> str:
        """The public key of the site's signatures."""
        return public_text(self.signing)

    @property
    def fingerprint(self) -> str:
        """One fingerprint for both public keys, to read out to the centre."""
        return keys_fingerprint(self.node_key, self.signing_key)


def create_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Write a new node key in the format ``flower-supernode`` reads; an existing one is never replaced.

    Raises:
        CredentialError: if the file exists.
    """
    if path.exists():
        raise CredentialError(f"{path.name} exists already", fix="move it away first, or keep it")
    key = ec.generate_private_key(ec.SECP384R1())
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the node key.

    Raises:
        CredentialError: if it is missing, not an EC P-384 key in OpenSSH format, or others may read it.
    """
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise CredentialError(f"{path.name} cannot be read", found=error.strerror or "") from None
    if mode & 0o077 and os.name == "posix":
        raise CredentialError(
            f"{path.name} can be read by others", found=f"mode {mode:o}", fix=f"chmod 600 {path}"
        )
    try:
        key = load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CredentialError(
            f"{path.name} is not an EC P-384 private key in OpenSSH format", fix="restore it from a backup"
        )
    return key


def load_keys(folder: SiteFolder, pending: bool = False) -> SiteKeys:
    """Read both keys; ``pending`` takes the node key that waits for the centre's welcome.

    Raises:
        CredentialError: if one is missing, damaged or readable by others.
    """
    node = next_node_key(folder) if pending else folder.node_key
    return SiteKeys(load_node_key(node), load_signing_key(folder.signing_key))


def prepare_keys(folder: SiteFolder, joined: bool) -> tuple[SiteKeys, list[Path]]:
    """Return the keys to ask the centre with, and which of them were made now.

    A site that has joined goes on with its node key until the centre has admitted another one.
    """
    private = folder.node_key.parent
    private.mkdir(parents=True, exist_ok=True)
    private.chmod(0o700)
    pending = joined or next_node_key(folder).exists()
    node = next_node_key(folder) if pending else folder.node_key
    made = [path for path in (node, folder.signing_key) if not path.exists()]
    if node in made:
        create_node_key(node)
    if folder.signing_key in made:
        create_signing_key(folder.signing_key)
    return load_keys(folder, pending), made


def take_next_key(folder: SiteFolder) -> None:
    """Put the node key that the centre has admitted in the place of the old one."""
    next_node_key(folder).replace(folder.node_key)
    sync_folder(folder.node_key.parent)


def next_node_key(folder: SiteFolder) -> Path:
    """Return where a node key waits for the centre's welcome."""
    return folder.node_key.with_name("node.next.key")
