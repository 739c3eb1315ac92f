"""The registry: which sites are invited, admitted and revoked, and the public keys they have.

One SQLite file that commands write and the gateway reads while it runs. It holds nothing secret but
hashes of invitations.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import CredentialError, DeploymentError, closest

State = Literal["invited", "admitted", "revoked"]

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""The same as ``name`` in site.toml."""
INVITATION_LASTS = 14 * 24 * 3600.0
"""Seconds an invitation can be answered in."""
SCHEMA_VERSION = 1
_PATIENCE = 30.0
"""Seconds to wait for whoever holds the file."""

_TABLES = """
CREATE TABLE IF NOT EXISTS sites (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, node_key BLOB NOT NULL DEFAULT x'',
    signing_key TEXT NOT NULL DEFAULT '', node_id TEXT, invited_at REAL NOT NULL,
    admitted_at REAL, revoked_at REAL, heard_at REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_site_per_key ON sites (node_key) WHERE node_key != x'';
CREATE UNIQUE INDEX IF NOT EXISTS one_site_per_node ON sites (node_id);
CREATE TABLE IF NOT EXISTS invitations (
    secret_sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, expires REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'open'
);
CREATE TABLE IF NOT EXISTS retired_keys (node_key BLOB PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS edits (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL);
INSERT OR IGNORE INTO edits VALUES (1, 0);
"""
_COLUMNS = "name, state, node_key, signing_key, node_id, invited_at, admitted_at, revoked_at, heard_at"
_SELECT = f"""
SELECT {_COLUMNS}, (SELECT expires FROM invitations i WHERE i.name = sites.name AND i.state = 'open')
FROM sites"""


@dataclass(frozen=True)
class RegisteredSite:
    """One site as the centre knows it; times are seconds since 1970."""

    name: str
    state: State
    node_key: bytes = b""
    """Flower's form: PEM of the EC public key. Empty before the first admission."""
    signing_key: str = ""
    """``ed25519:BASE64``; empty before the first admission."""
    node_id: int | None = None
    """Flower's number for the site's node; None until the running SuperLink has given one."""
    invited_at: float = 0.0
    admitted_at: float | None = None
    revoked_at: float | None = None
    heard_at: float | None = None
    """When its node last called the gateway."""
    invitation_expires: float | None = None
    """Set while an invitation is open; for an admitted site that is one for new keys."""


class Registry:
    """Sites by name; safe to use from several threads and processes at once."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or create it.

        Raises:
            CredentialError: if it is not a registry, or another version's.
            DeploymentError: if it cannot be opened, or somebody else holds it.
        """
        self._file = path.name
        self._clock = clock
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite would create it readable for others, and its companions inherit the mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise DeploymentError(
                f"{self._file} cannot be opened", found=error.strerror or "", fix="see to its owner"
            ) from None
        self._db = sqlite3.connect(path, timeout=_PATIENCE, check_same_thread=False, isolation_level=None)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._db.close()
            if _is_busy(error):
                raise DeploymentError(
                    f"{self._file} is in use",
                    found=f"for {_PATIENCE:g} s",
                    fix="see what holds it, then try again",
                ) from None
            raise CredentialError(
                f"{self._file} is not a registry of sites", found=str(error), fix="restore it from a backup"
            ) from None

    def _open(self) -> None:
        self._keep_a_log()
        self._db.execute("PRAGMA synchronous=FULL")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found not in (0, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"schema {found}, this version reads {SCHEMA_VERSION}")
        if found == 0:
            script = f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
            self._db.executescript(script)

    def _keep_a_log(self) -> None:
        """Turn the write-ahead log on; where several do so at once SQLite fails all but one."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.DatabaseError as error:
                if not _is_busy(error) or time.monotonic() >= end:
                    raise
            time.sleep(0.02)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def invite(self, name: str) -> str:
        """Note an invitation and return its secret, of which only the hash is kept.

        An earlier invitation of the same site is void. An admitted site stays admitted with the
        keys it has until it answers with new ones.

        Raises:
            CredentialError: if the name is not one a site can have.
        """
        if not SITE_NAME.fullmatch(name):
            raise CredentialError(
                "a site's name is up to 32 small letters, digits, - and _", found=repr(name)[:60]
            )
        secret, now = secrets.token_urlsafe(24), self._clock()
        with self._edit() as db:
            db.execute(
                "INSERT INTO sites (name, state, invited_at) VALUES (?, 'invited', ?)"
                " ON CONFLICT (name) DO UPDATE SET invited_at = excluded.invited_at",
                (name, now),
            )
            db.execute("UPDATE invitations SET state = 'void' WHERE name = ? AND state = 'open'", (name,))
            db.execute(
                "INSERT INTO invitations (secret_sha256, name, expires) VALUES (?, ?, ?)",
                (_hashed(secret), name, now + INVITATION_LASTS),
            )
        return secret

    def check_invitation(self, name: str, secret: str) -> None:
        """Check that a site was invited with this secret and may still answer.

        Raises:
            CredentialError: if it was not, or the invitation is used, void or too old.
        """
        rows = self._all(
            "SELECT expires, state FROM invitations WHERE secret_sha256 = ? AND name = ?",
            _hashed(secret),
            name,
        )
        again = f"invite it again: fedcxr-server invite {name}"
        if not rows:
            raise CredentialError(f"site {name} answers an invitation that this centre did not write for it")
        expires, state = rows[0]
        if state == "used":
            raise CredentialError(f"the invitation of site {name} has been used already", fix=again)
        if state == "void":
            raise CredentialError(
                f"the invitation of site {name} is void",
                found="a later one was written, or the site was revoked",
                fix=f"use the later one, or {again}",
            )
        late = (self._clock() - expires) / 86400
        if late > 0:
            raise CredentialError(
                f"the invitation of site {name} has expired", found=f"{late:.1f} days ago", fix=again
            )

    def admit(self, name: str, node_key: bytes, signing_key: str, secret: str | None = None) -> None:
        """Admit an invited site with these public keys; a node key it had before is retired.

        With ``secret`` the invitation is checked and used up in one step, so that of two requests
        at the same moment one is refused. A node key that was replaced or revoked never comes back:
        Flower keeps such a node closed for good.

        Raises:
            CredentialError: if the site was not invited, the invitation does not fit, or a key is
                another site's or a retired one.
        """
        with self._edit() as db:
            if secret is not None:
                self.check_invitation(name, secret)
            site = self.site(name)
            if site.invitation_expires is None and secret is None:
                raise CredentialError(
                    f"site {name} has no open invitation", fix=f"fedcxr-server invite {name}"
                )
            self._refuse_known_keys(name, node_key, signing_key)
            if site.node_key != node_key:
                self._retire(site)
            db.execute(
                "UPDATE sites SET state = 'admitted', node_key = ?, signing_key = ?, admitted_at = ?,"
                " revoked_at = NULL, node_id = CASE WHEN node_key = ? THEN node_id END,"
                " heard_at = CASE WHEN node_key = ? THEN heard_at END WHERE name = ?",
                (node_key, signing_key, self._clock(), node_key, node_key, name),
            )
            db.execute("UPDATE invitations SET state = 'used' WHERE name = ? AND state = 'open'", (name,))

    def revoke(self, name: str) -> bool:
        """Shut a site out; its node key and open invitation are void. False: it was revoked already.

        Raises:
            CredentialError: if there is no such site.
        """
        with self._edit() as db:
            site = self.site(name)
            if site.state == "revoked" and site.invitation_expires is None:
                return False
            self._retire(site)
            now = self._clock()
            db.execute("UPDATE sites SET state = 'revoked', revoked_at = ? WHERE name = ?", (now, name))
            db.execute("UPDATE invitations SET state = 'void' WHERE name = ? AND state = 'open'", (name,))
        return True

    def sites(self) -> list[RegisteredSite]:
        """Return every site ever invited, by name."""
        return [_site(row) for row in self._all(f"{_SELECT} ORDER BY name")]

    def site(self, name: str) -> RegisteredSite:
        """Return one site.

        Raises:
            CredentialError: if there is no such site.
        """
        known = {site.name: site for site in self.sites()}
        if name not in known:
            meant = closest(name, known) or "fedcxr-server sites lists those there are"
            raise CredentialError(f"there is no site {name!r:.60}", fix=meant)
        return known[name]

    def by_node_key(self, key: bytes) -> RegisteredSite | None:
        """Return the site, admitted or revoked, that has this node key now."""
        rows = self._all(f"{_SELECT} WHERE node_key = ? AND node_key != x''", key)
        return _site(rows[0]) if rows else None

    def set_node_id(self, name: str, node_id: int) -> None:
        """Note which number Flower gave to an admitted site's node.

        Raises:
            CredentialError: if there is no such site, or another one has the number.
        """
        with self._edit() as db:
            self.site(name)
            try:
                db.execute("UPDATE sites SET node_id = ? WHERE name = ?", (str(node_id), name))
            except sqlite3.IntegrityError:
                raise CredentialError(f"node {node_id} belongs to another site than {name}") from None

    def names(self) -> dict[int, str]:
        """Return node number -> site, of admitted sites only."""
        rows = self._all("SELECT node_id, name FROM sites WHERE state = 'admitted' AND node_id IS NOT NULL")
        return {int(node_id): name for node_id, name in rows}

    def heard(self, names: Mapping[str, float]) -> None:
        """Note when sites last called; no edit, so ``version`` stays as it is."""
        if names:
            update = "UPDATE sites SET heard_at = max(?, coalesce(heard_at, 0)) WHERE name = ?"
            with self._transaction() as db:
                db.executemany(update, [(when, name) for name, when in names.items()])

    def version(self) -> int:
        """Return a number that grows with every edit by any process; cheap to ask for."""
        ((version,),) = self._all("SELECT version FROM edits")
        return int(version)

    @contextmanager
    def _edit(self) -> Iterator[sqlite3.Connection]:
        """A transaction that others notice by ``version``."""
        with self._transaction() as db:
            yield db
            db.execute("UPDATE edits SET version = version + 1")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Changes that are seen whole or not at all."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise DeploymentError(
                    f"{self._file} cannot be written", found=str(error), fix="see to disk space and owner"
                ) from None

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _retire(self, site: RegisteredSite) -> None:
        """Note a node key as never to be admitted again."""
        if site.node_key:
            self._db.execute("INSERT OR IGNORE INTO retired_keys VALUES (?, ?)", (site.node_key, site.name))

    def _refuse_known_keys(self, name: str, node_key: bytes, signing_key: str) -> None:
        for other in self.sites():
            if other.name != name and node_key and (
                other.node_key == node_key or other.signing_key == signing_key
            ):  # fmt: skip
                raise CredentialError(
                    f"site {name} came with a key of site {other.name}", fix="every site makes its own keys"
                )
        if self._all("SELECT 1 FROM retired_keys WHERE node_key = ?", node_key):
            raise CredentialError(
                f"site {name} came with a node key that was revoked or replaced",
                fix="at the site: fedcxr-site leave, then fedcxr-site init with a new invitation",
            )


def _is_busy(error: sqlite3.Error) -> bool:
    """Whether a file is sound and only held by somebody else."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the lowest byte is the primary code
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _site(row: tuple[Any, ...]) -> RegisteredSite:
    values = dict(zip([*_COLUMNS.split(", "), "invitation_expires"], row, strict=True))
    node_id = values.pop("node_id")
    return RegisteredSite(node_id=None if node_id is None else int(node_id), **values)
