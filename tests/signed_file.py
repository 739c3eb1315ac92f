"""What travels between a centre and a site, changed on its way."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.signing import public_text, sign


def changed(text: str) -> str:
    """Change one character in the middle."""
    at = len(text) // 2
    return text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1 :]


def tamper(path: Path, field: str) -> None:
    """Change one character or the last digits of one field of a signed file."""
    whole = json.loads(path.read_bytes())
    value = whole["body"][field]
    whole["body"][field] = value + 1 if isinstance(value, float) else changed(value)
    path.write_text(json.dumps(whole))


def tamper_around(path: Path, field: str) -> None:
    """Change one character of what stands around the fields of a signed file."""
    whole = json.loads(path.read_bytes())
    whole[field] = changed(whole[field])
    path.write_text(json.dumps(whole))


def sign_anew(path: Path, kind: str, body: dict[str, object], key: Ed25519PrivateKey) -> None:
    """Write a signed file, whatever it says."""
    covered = json.dumps([kind, body], sort_keys=True).encode()
    whole = {"kind": kind, "body": body, "key": public_text(key), "signature": sign(key, covered)}
    path.write_text(json.dumps(whole))
