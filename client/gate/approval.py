"""Approvals: which code, policy and base somebody at this site has looked at and signed.

An approval is a signed file that names all of them by SHA-256. The newest file decides: another
approval replaces it, a withdrawal ends it, and a file that is damaged means that nothing is approved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.gate.audit import Audit
from client.gate.policy import load_policy
from client.place import SiteFolder
from common.code import code_digest
from common.errors import ApprovalError, CredentialError, SignatureError
from common.overrides import shortened
from common.signing import load_signing_key, public_text, read_signed, write_signed

KIND = "fedcxr approval"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"approval-(\d{4,})\.json")
_AGAIN = "look at it again and run: fedcxr-site approve"


@dataclass(frozen=True)
class Approval:
    """What one person approved at one time."""

    number: int
    """Grows with every approval and withdrawal of this site; stands in the file's name too."""
    fab: str
    """SHA-256 of the Flower App Bundle."""
    code: str
    """Digest of the installed code."""
    policy: str
    """SHA-256 of policy.toml as it stood."""
    bases: tuple[str, ...]
    """Digests of the bases a plan may name."""
    by: str
    when: str
    """UTC, ISO 8601."""
    withdrawn: bool = False
    """Nothing is approved any more."""


def approve(folder: SiteFolder, fab: bytes, bases: Sequence[str], by: str) -> Approval:
    """Sign an approval of a bundle, the installed code, policy.toml as it stands, and some bases.

    It is written to the audit as well, so that it cannot be taken back unseen.

    Raises:
        ApprovalError: if nobody is named, no base is, a base is not a digest, or it cannot be written.
        ConfigError: if policy.toml cannot be read or is wrong.
        CredentialError: if the site has no sound key to sign with.
        AuditError: if it cannot be written to the audit.
    """
    load_policy(folder.policy)
    if not bases or not all(_SHA256.fullmatch(base) for base in bases):
        raise ApprovalError(
            "an approval names the bases it accepts by SHA-256",
            found=shortened(", ".join(bases)) or "none",
            fix="run fedcxr-site approve, which works them out",
        )
    return _sign(
        folder,
        fab=hashlib.sha256(fab).hexdigest(),
        code=code_digest(),
        policy=policy_digest(folder),
        bases=tuple(dict.fromkeys(bases)),
        by=_person(by),
        withdrawn=False,
    )


def withdraw(folder: SiteFolder, by: str) -> Approval:
    """Sign that nothing is approved any more: every instruction is refused until somebody approves again.

    Raises:
        ApprovalError: if nothing was approved.
        CredentialError, AuditError: as `approve`.
    """
    newest = _newest(folder)
    return _sign(
        folder,
        fab=newest.fab,
        code=newest.code,
        policy=newest.policy,
        bases=newest.bases,
        by=_person(by),
        withdrawn=True,
    )


def current_approval(folder: SiteFolder) -> Approval:
    """Return the approval in force.

    Raises:
        ApprovalError: if there is none, the newest is withdrawn, damaged or not signed by this site,
            policy.toml has changed since, or the installed code is another.
    """
    newest = _newest(folder)
    if newest.withdrawn:
        raise ApprovalError("the approval was withdrawn", found=f"by {newest.by}, {newest.when}", fix=_AGAIN)
    if newest.policy != policy_digest(folder):
        raise ApprovalError(
            "policy.toml has changed since it was approved", found=f"approved {newest.when}", fix=_AGAIN
        )
    if newest.code != code_digest():
        raise ApprovalError(
            "the installed code is not the one approved",
            found=f"{code_digest()[:12]}, approved {newest.code[:12]}",
            fix=_AGAIN,
        )
    return newest


def policy_digest(folder: SiteFolder) -> str:
    """Return the SHA-256 of policy.toml, byte for byte.

    Raises:
        ApprovalError: if it cannot be read.
    """
    try:
        return hashlib.sha256(folder.policy.read_bytes()).hexdigest()
    except OSError as error:
        raise ApprovalError(
            "policy.toml cannot be read", found=error.strerror or "", fix="restore the file, then approve it"
        ) from None


def _newest(folder: SiteFolder) -> Approval:
    files = _files(folder)
    if not files:
        raise ApprovalError("nobody at this site has approved any code yet", fix="run: fedcxr-site approve")
    number = max(files)
    file = files[number]
    try:
        body = read_signed(file, KIND, public_text(load_signing_key(folder.signing_key)))
        body.pop("key")
        approval = Approval(**body | {"bases": tuple(body["bases"])})
    except (CredentialError, SignatureError, TypeError, KeyError) as error:
        problem = (
            error.problem if isinstance(error, CredentialError | SignatureError) else "fields are missing"
        )
        raise ApprovalError(
            f"the newest approval, {file.name}, is not sound", found=problem, fix=_AGAIN
        ) from None
    if approval.number != number:
        raise ApprovalError(
            f"the newest approval, {file.name}, is another one's file",
            found=f"signed as number {approval.number}",
            fix=_AGAIN,
        )
    return approval


def _sign(
    folder: SiteFolder, *, fab: str, code: str, policy: str, bases: tuple[str, ...], by: str, withdrawn: bool
) -> Approval:
    key = load_signing_key(folder.signing_key)
    approval = Approval(
        number=max(_files(folder), default=0) + 1,
        fab=fab,
        code=code,
        policy=policy,
        bases=bases,
        by=by,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        withdrawn=withdrawn,
    )
    told = {"approval": approval.number, "by": by, "bundle": fab, "installed": code, "policy": policy}
    Audit(folder).append("withdrawn" if withdrawn else "approved", **told, bases=list(bases))
    body = dataclasses.asdict(approval) | {"bases": list(bases)}
    try:
        write_signed(folder.approvals / f"approval-{approval.number:04d}.json", KIND, body, key)
    except OSError as error:
        raise ApprovalError(
            "the approval cannot be written",
            found=error.strerror or "",
            fix=f"see room and rights of {folder.approvals}",
        ) from None
    return approval


def _files(folder: SiteFolder) -> dict[int, Path]:
    if not folder.approvals.is_dir():
        return {}
    named = {file: _FILE.fullmatch(file.name) for file in folder.approvals.iterdir()}
    return {int(match[1]): file for file, match in named.items() if match}


def _person(by: str) -> str:
    if not by.strip() or not by.isprintable() or len(by) > 100:
        raise ApprovalError(
            "an approval names who approves", found=shortened(repr(by)), fix='use --by "NAME"'
        )
    return by.strip()
