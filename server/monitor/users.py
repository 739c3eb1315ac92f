"""Users of the monitor: names and Argon2id hashes in one file, 0600; passwords are kept nowhere."""

from __future__ import annotations

import os
import re
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path

import tomli_w
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from common.errors import ConfigError, CredentialError
from common.files import write_atomic

FILE = "monitor-users.toml"
LEAST_LETTERS = 12
MOST_BYTES = 1024
"""Of a password."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_ITERATIONS, _LANES, _MEMORY = 2, 1, 19_456
"""OWASP Password Storage Cheat Sheet, Argon2id: m = 19 MiB, t = 2, p = 1 (RFC 9106 defines them)."""
_HASH = re.compile(r"\$argon2id\$v=19\$m=(\d{1,6}),t=(\d{1,2}),p=(\d)\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")


def hash_password(password: str) -> str:
    """Return a PHC string of a password with a fresh salt; it takes about 20 ms and 19 MiB."""
    salt = secrets.token_bytes(16)
    derived = Argon2id(salt=salt, length=32, iterations=_ITERATIONS, lanes=_LANES, memory_cost=_MEMORY)
    return derived.derive_phc_encoded(password.encode())


def verify_password(password: str, hashed: str) -> bool:
    """Whether a password is the one that was hashed."""
    try:
        Argon2id.verify_phc_encoded(password.encode("utf-8", "replace"), hashed)
    except InvalidKey:
        return False
    return True


def check_password(password: str) -> None:
    """Refuse a password that is too short or too long.

    Raises:
        ConfigError: if it is.
    """
    if len(password) < LEAST_LETTERS:
        raise ConfigError(
            "the password is too short",
            found=f"{len(password)} characters",
            fix=f"take {LEAST_LETTERS} or more; four random words are good",
        )
    if len(password.encode()) > MOST_BYTES:
        raise ConfigError("the password is too long", fix=f"take at most {MOST_BYTES} bytes")


class Users:
    """Name -> hash, read again whenever the file has changed."""

    def __init__(self, file: Path | None) -> None:
        """Take the file; without one there is nobody."""
        self.file = file
        self.damaged = ""
        """What is wrong with the file; nobody is a user then."""
        self._stamp: object = None
        self._hashes: Mapping[str, str] = {}

    def hashes(self) -> Mapping[str, str]:
        """Return name -> hash as the file has them now; nobody if it is damaged."""
        stamp = self._now()
        if stamp != self._stamp:
            try:
                self._hashes, self.damaged = self.read(), ""
            except CredentialError as error:
                self._hashes, self.damaged = {}, error.problem
            self._stamp = stamp
        return self._hashes

    def read(self) -> dict[str, str]:
        """Read the file.

        Raises:
            CredentialError: if others can read it, or it is not one of ours.
        """
        if self.file is None or not self.file.exists():
            return {}
        fix = f"write it anew: move it away, then fedcxr-server password NAME ({self.file.name})"
        try:
            mode = self.file.stat().st_mode & 0o777
            tree = tomllib.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            raise CredentialError(f"{self.file.name} cannot be read", fix=fix) from None
        if mode & 0o077 and os.name == "posix":
            raise CredentialError(
                f"{self.file.name} can be read by others",
                found=f"mode {mode:o}",
                fix=f"chmod 600 {self.file}",
            )
        users = tree.get("users")
        if not isinstance(users, dict) or tree.keys() != {"users"}:
            raise CredentialError(f"{self.file.name} holds no table of users", fix=fix)
        for name, hashed in users.items():
            if not _NAME.fullmatch(name) or not isinstance(hashed, str) or not _is_hash(hashed):
                raise CredentialError(
                    f"{self.file.name}: a line is no user with an Argon2id hash", found=name[:40], fix=fix
                )
        return users

    def set(self, name: str, password: str) -> bool:
        """Give a user a password; True if the name is new.

        Raises:
            ConfigError: if the name or the password will not do.
            CredentialError: if the file is damaged.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError("a user's name is small letters, digits, '.', - and _", found=repr(name)[:60])
        check_password(password)
        users = self.read()
        new = name not in users
        self._write(users | {name: hash_password(password)})
        return new

    def remove(self, name: str) -> None:
        """Take a user out.

        Raises:
            ConfigError: if there is none of that name.
            CredentialError: if the file is damaged.
        """
        users = self.read()
        if name not in users:
            raise ConfigError(f"there is no user {name[:40]!r}", found=", ".join(sorted(users)) or "nobody")
        del users[name]
        self._write(users)

    def _write(self, users: Mapping[str, str]) -> None:
        if self.file is None:
            raise ConfigError("there is no file for users", fix="name --centre or --config")
        write_atomic(self.file, tomli_w.dumps({"users": dict(sorted(users.items()))}).encode(), 0o600)

    def _now(self) -> object:
        if self.file is None:
            return None
        try:
            facts = self.file.stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode


def _is_hash(text: str) -> bool:
    """Whether a line is a hash that costs no more than it may: at most 256 MiB and 16 passes."""
    found = _HASH.fullmatch(text)
    return found is not None and int(found[1]) <= 262_144 and int(found[2]) <= 16 and int(found[3]) <= 4
