"""Ed25519 signatures, and files of facts that carry one.

A signed file is JSON: ``{"kind": ..., "body": {...}, "key": ..., "signature": ...}``. The signature
covers kind and body, so a file of one kind never passes for another.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from common.errors import CredentialError, SignatureError
from common.files import write_atomic

_PREFIX = "ed25519:"


def create_signing_key(path: Path) -> Ed25519PrivateKey:
    """Write a new private key that only its owner can read; an existing one is never replaced.

    Raises:
        CredentialError: if the file exists.
    """
    if path.exists():
        raise CredentialError(f"{path.name} exists already", fix="move it away first, or keep it")
    key = Ed25519PrivateKey.generate()
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        CredentialError: if it is missing, not an Ed25519 key, or others may read it.
    """
    try:
        data = path.read_bytes()
        open_to_others = path.stat().st_mode & 0o077
    except OSError as error:
        raise CredentialError(f"{path.name} cannot be read", found=error.strerror or "") from None
    if open_to_others and os.name == "posix":
        raise CredentialError(
            f"{path.name} can be read by others",
            found=f"mode {path.stat().st_mode & 0o777:o}",
            fix=f"chmod 600 {path}",
        )
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise CredentialError(f"{path.name} is not an Ed25519 private key", fix="restore it from a backup")
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """Return the public half as text, such as ``ed25519:BASE64``."""
    return _PREFIX + base64.b64encode(key.public_key().public_bytes_raw()).decode()


def sign(key: Ed25519PrivateKey, data: bytes) -> str:
    """Return the signature of ``data`` as base64."""
    return base64.b64encode(key.sign(data)).decode()


def verify(public: str, data: bytes, signature: str) -> None:
    """Check a signature against a public key as ``public_text`` writes it.

    Raises:
        SignatureError: if it does not fit, or either is not readable.
    """
    try:
        raw = base64.b64decode(public.removeprefix(_PREFIX), validate=True)
        Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(signature, validate=True), data)
    except (InvalidSignature, ValueError, binascii.Error):
        raise SignatureError("a signature does not fit what it stands under") from None


def write_signed(
    path: Path, kind: str, body: Mapping[str, Any], key: Ed25519PrivateKey, mode: int = 0o600
) -> None:
    """Write a signed file."""
    whole = {
        "kind": kind,
        "body": body,
        "key": public_text(key),
        "signature": sign(key, _covered(kind, body)),
    }
    write_atomic(path, json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n", mode)


def read_signed(path: Path, kind: str, public: str | None = None) -> dict[str, Any]:
    """Read a signed file and return its body; ``key`` in it is who signed.

    ``public`` is the key that must have signed; None takes the file's own, which only shows that
    it is whole.

    Raises:
        CredentialError: if it is missing, not a signed file, or of another kind.
        SignatureError: if the signature does not fit, or is by another key.
    """
    try:
        whole = json.loads(path.read_bytes())
        found, body, key, signature = (whole[name] for name in ("kind", "body", "key", "signature"))
    except OSError as error:
        raise CredentialError(f"{path.name} cannot be read", found=error.strerror or "") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CredentialError(f"{path.name} is not a signed file of fedcxr") from None
    if found != kind or not isinstance(body, dict) or not isinstance(key, str):
        raise CredentialError(f"{path.name} is not a {kind}", found=str(found)[:60])
    if public is not None and key != public:
        raise SignatureError(f"{path.name} is signed by somebody else")
    verify(key, _covered(kind, body), str(signature))
    return {**body, "key": key}


def _covered(kind: str, body: Mapping[str, Any]) -> bytes:
    return json.dumps([kind, body], sort_keys=True).encode()
