"""The audit: one line for everything that was asked, that left, or that was refused, in a hash chain.

Each line is JSON: its number ``n``, ``time`` (UTC), ``kind``, the facts, ``previous`` (the hash of the
line before) and ``hash``, the SHA-256 of all that. Beside the file lies its head, signed with the site's
key: number and hash of the last line, so that lines missing at the end are noticed too. A line is
flushed to disk before the head is, so a crash between the two leaves a head that is one line behind,
and that is no fault. A line takes 0.4 to 2 kB.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.place import SiteFolder
from common.errors import AuditError, CredentialError, SignatureError
from common.files import write_atomic
from common.signing import load_signing_key, public_text, read_signed, write_signed

KIND = "fedcxr audit head"
START = "0" * 64
"""What the first line calls the hash of the line before."""

_OWN = ("n", "time", "kind", "previous", "hash")
_VERIFY = "run: fedcxr-site audit verify"


def head_file(folder: SiteFolder) -> Path:
    """Return where the signed head of a site's audit lies."""
    return folder.audit.with_suffix(".head.json")


@dataclass(frozen=True)
class _Tail:
    """The end of the chain as last seen."""

    size: int = 0
    lines: int = 0
    hash: str = START
    before: str = START
    """Hash of the line before the last."""


class Audit:
    """Appends to a site's audit; several threads and processes may."""

    def __init__(self, folder: SiteFolder) -> None:
        self._folder = folder
        self._tail: _Tail | None = None
        self._head = 0
        self._thread = threading.Lock()

    def append(self, kind: str, **facts: Any) -> None:
        """Write one line, on disk when this returns.

        Raises:
            AuditError: if it cannot be written, or what is there is not as this site signed it.
                Whatever was to be audited must then not happen.
        """
        with self._thread:
            try:
                with _locked(self._folder.audit) as descriptor:
                    self._catch_up(descriptor)
                    self._sign_head()
                    self._write(descriptor, kind, facts)
                    self._sign_head()
            except AuditError:
                self._tail = None
                raise
            except OSError as error:
                self._tail = None
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise AuditError(
                    "the audit cannot be written, so nothing leaves",
                    found=error.strerror or "",
                    fix="make room on the disk" if full else f"see the rights of {self._folder.audit.parent}",
                ) from None

    def _catch_up(self, descriptor: int) -> None:
        """Read the end of the file, if somebody else wrote to it since, and mend a torn last line."""
        size = os.fstat(descriptor).st_size
        if self._tail is not None and self._tail.size == size:
            return
        whole = _end_of_last_line(descriptor, size)
        self._tail = _read_tail(descriptor, whole)
        self._check_head()
        self._set_aside(descriptor, whole, size)

    def _check_head(self) -> None:
        head, tail = _read_head(self._folder), self._known()
        lines, digest = (head["lines"], head["hash"]) if head else (0, START)
        if (lines, digest) not in ((tail.lines, tail.hash), (tail.lines - 1, tail.before)):
            raise AuditError(
                "the audit is not as this site signed it, so nothing leaves",
                found=f"{tail.lines} lines, signed for {lines}",
                fix=f"{_VERIFY}; keep both files, move them away together, and start again",
            )
        self._head = lines

    def _set_aside(self, descriptor: int, whole: int, size: int) -> None:
        """Move what a crash left of a line to a file of its own, and say so in the audit.

        The file is named after the line it would have been, so that a crash in here is made good too.
        """
        number = self._known().lines + 1
        torn = self._folder.audit.with_name(f"{self._folder.audit.name}.torn-{number}")
        if whole < size:
            write_atomic(torn, os.pread(descriptor, size - whole, whole))
            os.ftruncate(descriptor, whole)
        if torn.exists():
            part = torn.read_bytes()
            facts = {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest(), "file": torn.name}
            self._sign_head()
            self._write(descriptor, "repaired", facts)

    def _write(self, descriptor: int, kind: str, facts: Mapping[str, Any]) -> None:
        tail = self._known()
        line = _line(tail, kind, facts)
        data = json.dumps(line, separators=(",", ":"), sort_keys=False).encode() + b"\n"
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, tail.size)
            raise
        self._tail = _Tail(tail.size + len(data), tail.lines + 1, line["hash"], tail.hash)

    def _sign_head(self) -> None:
        """Sign the last line's number and hash, unless that is done."""
        tail = self._known()
        if self._head == tail.lines:
            return
        body = {"lines": tail.lines, "hash": tail.hash}
        try:
            write_signed(head_file(self._folder), KIND, body, load_signing_key(self._folder.signing_key))
        except CredentialError as error:
            raise AuditError(
                "the audit cannot be signed, so nothing leaves", found=error.problem, fix=error.fix
            ) from None
        self._head = tail.lines

    def _known(self) -> _Tail:
        return self._tail or _Tail()


@dataclass(frozen=True)
class AuditCheck:
    """What a look at the whole audit found."""

    lines: int
    problems: list[str]
    """Empty: every line is as it was written, and none is missing."""
    notes: list[str]
    """What a crash leaves behind, which is no fault."""


def verify_audit(folder: SiteFolder) -> AuditCheck:
    """Recompute the whole chain and hold it against the signed head.

    Raises:
        AuditError: if the file or the site's key cannot be read.
    """
    data = _bytes(folder)
    *complete, rest = data.split(b"\n")
    problems: list[str] = []
    notes: list[str] = []
    last = _Tail()
    for position, text in enumerate(complete, 1):
        line = _parse(text)
        if line is None:
            problems.append(f"line {position} is not a line of an audit")
            last = _Tail(0, last.lines + 1, "", last.hash)
            continue
        number, digest = line["n"], line["hash"]
        if digest != _hash(line):
            problems.append(f"line {position} was changed after it was written")
            last = _Tail(0, last.lines + 1, digest, line["previous"])
            continue
        if number <= last.lines:
            problems.append(
                f"line {position} is number {number}, after number {last.lines}: it was moved or put in"
            )
            continue
        if number > last.lines + 1:
            problems.append(_missing(position, number, last.lines))
        elif last.hash not in ("", line["previous"]):
            problems.append(
                f"line {position} does not follow line {position - 1}: one of them was written anew"
            )
        last = _Tail(0, number, digest, line["previous"])
    if rest:
        notes.append(f"line {len(complete) + 1} is not whole, as after a crash; the next start sets it aside")
    problems += _head_problems(folder, last, len(complete), notes)
    return AuditCheck(len(complete), problems, notes)


def read_audit(folder: SiteFolder) -> Iterator[dict[str, Any]]:
    """Yield every whole line.

    Raises:
        AuditError: if the file cannot be read, or a line is not one of an audit.
    """
    for position, text in enumerate(_bytes(folder).split(b"\n")[:-1], 1):
        line = _parse(text)
        if line is None:
            raise AuditError(f"line {position} of the audit cannot be read", fix=_VERIFY)
        yield line


def _missing(position: int, number: int, last: int) -> str:
    gone = f"number {last + 1}" if number == last + 2 else f"numbers {last + 1} to {number - 1}"
    return f"line {position} is number {number}: {gone} is not before it"


def _head_problems(folder: SiteFolder, last: _Tail, count: int, notes: list[str]) -> list[str]:
    try:
        head = _read_head(folder)
    except AuditError as error:
        return [": ".join(filter(None, (error.problem, error.found)))]
    if head is None:
        if count > 1:
            return ["the signed head is missing, so lines at the end may be too"]
        notes += ["the first line is not signed yet"] if count else []
        return []
    lines, digest = head["lines"], head["hash"]
    if lines > last.lines:
        return [f"the end is missing: {lines} lines were signed, the last one here is number {last.lines}"]
    if lines == last.lines:
        return [] if digest == last.hash else [f"line {count} is not the one that was signed as the last"]
    if lines == last.lines - 1 and digest == last.before:
        notes.append(f"line {count} is not signed yet, as after a crash")
        return []
    return [f"only {lines} lines were signed, the last one here is number {last.lines}"]


def _read_head(folder: SiteFolder) -> dict[str, Any] | None:
    file = head_file(folder)
    if not file.exists():
        return None
    try:
        head = read_signed(file, KIND, public_text(load_signing_key(folder.signing_key)))
    except (CredentialError, SignatureError) as error:
        raise AuditError(
            "the head of the audit is not signed by this site", found=error.problem, fix=_VERIFY
        ) from None
    if type(head.get("lines")) is not int or not isinstance(head.get("hash"), str):
        raise AuditError("the head of the audit lacks its fields", fix=_VERIFY)
    return head


def _line(tail: _Tail, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    reserved = [name for name in facts if name in _OWN]
    if reserved:
        raise AuditError(f"a fact may not be called {reserved[0]}")
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"n": tail.lines + 1, "time": time, "kind": kind, **facts, "previous": tail.hash}
    try:
        line = json.loads(json.dumps(line, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise AuditError(f"the facts of {kind} are not plain numbers and words") from None
    return line | {"hash": _hash(line)}


def _hash(line: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in line.items() if key != "hash"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or any(name not in line for name in _OWN):
        return None
    words = all(isinstance(line[name], str) for name in _OWN if name != "n")
    return line if words and type(line["n"]) is int else None


def _bytes(folder: SiteFolder) -> bytes:
    try:
        return folder.audit.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise AuditError("the audit cannot be read", found=error.strerror or "") from None


def _end_of_last_line(descriptor: int, size: int) -> int:
    """Return the offset behind the last newline."""
    end = size
    while end:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _read_tail(descriptor: int, whole: int) -> _Tail:
    """Read the last whole line, which ends at ``whole``."""
    if not whole:
        return _Tail()
    start = _end_of_last_line(descriptor, whole - 1)
    line = _parse(os.pread(descriptor, whole - start, start))
    if line is None or line["hash"] != _hash(line):
        raise AuditError("the audit's last line was changed, so nothing leaves", fix=_VERIFY)
    return _Tail(whole, line["n"], line["hash"], line["previous"])


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Open a file for appending and keep every other writer waiting meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
