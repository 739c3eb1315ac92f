"""The audit: whatever is changed, taken out, put in or moved is seen; a crash is not mistaken for it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.gate import audit as module
from client.gate.audit import Audit, head_file, read_audit, verify_audit
from client.place import SiteFolder
from common.errors import AuditError
from common.signing import create_signing_key

LINES = 8


@pytest.fixture
def written(site_folder: SiteFolder) -> SiteFolder:
    audit = Audit(site_folder)
    for number in range(LINES):
        audit.append("answer", run="7", round=number, records={"update": {"bytes": 24}})
    return site_folder


def lines_of(folder: SiteFolder) -> list[bytes]:
    return folder.audit.read_bytes().splitlines(keepends=True)


def put(folder: SiteFolder, lines: list[bytes]) -> list[str]:
    folder.audit.write_bytes(b"".join(lines))
    return verify_audit(folder).problems


def recomputed(line: bytes, **changes: Any) -> bytes:
    """A line changed by somebody who knows how its hash is made."""
    facts = json.loads(line) | changes
    return json.dumps(facts | {"hash": module._hash(facts)}).encode() + b"\n"


def test_lines_are_what_was_written(written: SiteFolder) -> None:
    check = verify_audit(written)
    assert (check.lines, check.problems, check.notes) == (LINES, [], [])
    told = list(read_audit(written))
    assert [line["n"] for line in told] == list(range(1, LINES + 1))
    assert told[3]["records"] == {"update": {"bytes": 24}} and told[3]["kind"] == "answer"
    assert told[0]["time"].endswith("Z") and written.audit.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("again", [False, True], ids=["plain", "hash computed anew"])
@pytest.mark.parametrize("at", range(LINES))
def test_an_edited_line_is_named(written: SiteFolder, at: int, again: bool) -> None:
    lines = lines_of(written)
    lines[at] = recomputed(lines[at], round=99) if again else lines[at].replace(b'"bytes":24', b'"bytes":25')
    problems = put(written, lines)
    assert len(problems) == 1
    assert f"line {at + 1}" in problems[0]


@pytest.mark.parametrize("at", range(LINES))
def test_a_deleted_line_is_named(written: SiteFolder, at: int) -> None:
    problems = put(written, [line for i, line in enumerate(lines_of(written)) if i != at])
    assert len(problems) == 1
    assert f"number {at + 1} is not" in problems[0] or (
        at == LINES - 1 and "the end is missing" in problems[0]
    )


@pytest.mark.parametrize("at", range(LINES - 1))
def test_reordered_lines_are_named(written: SiteFolder, at: int) -> None:
    lines = lines_of(written)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    problems = put(written, lines)
    assert any(f"line {at + 1} " in problem for problem in problems)
    assert any(f"line {at + 2} " in problem and "moved or put in" in problem for problem in problems)


@pytest.mark.parametrize("at", range(LINES + 1))
def test_an_inserted_line_is_named(written: SiteFolder, at: int) -> None:
    lines = lines_of(written)
    problems = put(written, [*lines[:at], lines[2], *lines[at:]])
    place = at + 2 if at == 2 else at + 1  # the second of two equal lines is the one too many
    assert any(f"line {place} " in problem for problem in problems)


def test_the_end_may_not_be_cut_off_nor_forged(written: SiteFolder) -> None:
    lines = lines_of(written)
    assert "8 lines were signed" in put(written, lines[:3])[0]
    assert "8 lines were signed" in put(written, [])[0]
    forged = recomputed(lines[-1], n=LINES + 1, previous=json.loads(lines[-1])["hash"])
    more = recomputed(forged, n=LINES + 2, previous=json.loads(forged)["hash"])
    assert "only 8 lines were signed" in put(written, [*lines, forged, more])[0]
    assert "is not the one that was signed" in put(written, [*lines[:-1], recomputed(lines[-1], round=5)])[0]


def test_the_head_may_not_be_replaced(written: SiteFolder, tmp_path: Path) -> None:
    head = head_file(written)
    old = head.read_bytes()
    head.write_bytes(old.replace(b'"lines": 8', b'"lines": 7'))
    assert "not signed by this site" in verify_audit(written).problems[0]
    head.unlink()
    assert "head is missing" in verify_audit(written).problems[0]
    other = SiteFolder(tmp_path / "other")
    create_signing_key(other.signing_key)
    Audit(other).append("answer")
    head.write_bytes(head_file(other).read_bytes())
    assert "not signed by this site" in verify_audit(written).problems[0]


@pytest.fixture
def whole(written: SiteFolder) -> bytes:
    return written.audit.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_can_be_changed(written: SiteFolder, whole: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    written.audit.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    check = verify_audit(written)
    same = [json.loads(line) for line in whole.splitlines()]
    if at == len(whole) - 1:
        assert check.problems or check.notes
    elif not check.problems:
        assert [json.loads(line) for line in written.audit.read_bytes().splitlines()] == same


def test_nothing_leaves_once_it_was_changed(written: SiteFolder) -> None:
    audit = Audit(written)
    audit.append("answer")
    put(written, lines_of(written)[:-1])
    for writer in (audit, audit, Audit(written)):
        with pytest.raises(AuditError, match="not as this site signed it"):
            writer.append("answer")
    written.audit.unlink()
    with pytest.raises(AuditError, match="not as this site signed it"):
        Audit(written).append("answer")
    head_file(written).unlink()
    Audit(written).append("answer")
    assert verify_audit(written).lines == 1


def test_a_last_line_with_another_hash_stops_it(written: SiteFolder) -> None:
    lines = lines_of(written)
    put(written, [*lines[:-1], lines[-1].replace(b"24", b"25")])
    with pytest.raises(AuditError, match="last line was changed"):
        Audit(written).append("answer")


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_set_aside_and_said(written: SiteFolder, left: int) -> None:
    """As kill -9 leaves it: half a line, the head still that of the line before."""
    whole = written.audit.read_bytes()
    torn = b'{"n":9,"time":"2026-05-01T00:00:00.000Z","kind":"answer"}\n'[:left]
    written.audit.write_bytes(whole + torn)
    check = verify_audit(written)
    assert not check.problems and "not whole" in check.notes[0]
    assert len(list(read_audit(written))) == LINES
    Audit(written).append("answer", round=9)
    assert verify_audit(written) == module.AuditCheck(LINES + 2, [], [])
    repaired, last = list(read_audit(written))[-2:]
    assert (repaired["kind"], repaired["bytes"], last["round"]) == ("repaired", len(torn), 9)
    assert (written.audit.parent / repaired["file"]).read_bytes() == torn


def test_a_crash_while_it_is_set_aside_is_made_good(
    written: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.audit.write_bytes(written.audit.read_bytes() + b'{"n":9')
    with monkeypatch.context() as patch:
        patch.setattr(Audit, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Audit(written).append("answer")
    Audit(written).append("answer")
    assert [line["kind"] for line in read_audit(written)][-2:] == ["repaired", "answer"]
    assert not verify_audit(written).problems


def test_a_crash_before_the_head_is_signed_is_no_fault(
    written: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = head_file(written).read_bytes()
    Audit(written).append("answer", round=9)
    head_file(written).write_bytes(before)
    check = verify_audit(written)
    assert not check.problems and "not signed yet" in check.notes[0]
    Audit(written).append("answer", round=10)
    assert verify_audit(written) == module.AuditCheck(LINES + 2, [], [])


def test_the_head_is_never_two_lines_behind(written: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(written)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_signed", full)
        for _ in range(3):
            with pytest.raises(AuditError, match="cannot be written"):
                audit.append("answer")
    assert verify_audit(written).lines == LINES + 1
    audit.append("answer")
    assert verify_audit(written) == module.AuditCheck(LINES + 2, [], [])


def test_a_full_disk_lets_nothing_leave(site_folder: SiteFolder) -> None:
    """A limit on the size of files stops the write half way, as a full disk does."""
    program = """
import resource, signal, sys
from pathlib import Path
from client.gate.audit import Audit
from client.place import SiteFolder
from common.errors import AuditError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = SiteFolder(Path(sys.argv[1]))
audit = Audit(folder)
audit.append("answer")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    while True:
        audit.append("answer", padding="x" * 150)
except AuditError as error:
    sys.stdout.write(error.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(site_folder.root)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "E_AUDIT", done.stderr
    check = verify_audit(site_folder)
    assert check.lines >= 2 and not check.problems and not check.notes
    Audit(site_folder).append("answer")
    assert verify_audit(site_folder) == module.AuditCheck(check.lines + 1, [], [])


def test_without_its_key_nothing_is_written(written: SiteFolder) -> None:
    written.signing_key.unlink()
    with pytest.raises(AuditError):
        Audit(written).append("answer")
    assert len(lines_of(written)) == LINES


def _many(root: Path, count: int, name: str) -> None:
    audit = Audit(SiteFolder(root))
    for number in range(count):
        audit.append("traffic", by=name, number=number)


def test_two_processes_and_four_threads_write_one_chain(site_folder: SiteFolder) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_many, args=(site_folder.root, 25, f"p{i}")) for i in range(2)]
    shared = Audit(site_folder)
    threads = [
        threading.Thread(
            target=lambda i=i: [shared.append("traffic", by=f"t{i}", number=n) for n in range(25)]
        )
        for i in range(4)
    ]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join()
    assert verify_audit(site_folder) == module.AuditCheck(150, [], [])
    lines = list(read_audit(site_folder))
    for writer in ("p0", "p1", "t0", "t3"):
        assert [line["number"] for line in lines if line["by"] == writer] == list(range(25))


def test_kill_9_at_any_moment_is_no_tampering(site_folder: SiteFolder) -> None:
    program = """
import sys
from pathlib import Path
from client.gate.audit import Audit
from client.place import SiteFolder
audit = Audit(SiteFolder(Path(sys.argv[1])))
while True:
    audit.append("answer", padding="x" * 20000)
"""
    lines = 0
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", program, str(site_folder.root)])
        end = time.monotonic() + 30
        while verify_audit(site_folder).lines <= lines + attempt and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        check = verify_audit(site_folder)
        assert not check.problems
        assert check.lines > lines
        lines = check.lines
    Audit(site_folder).append("answer")
    assert not verify_audit(site_folder).problems


@pytest.mark.parametrize("facts", [{"n": 5}, {"hash": "x"}, {"value": float("nan")}, {"value": object()}])
def test_facts_that_cannot_stand_there(site_folder: SiteFolder, facts: dict[str, Any]) -> None:
    audit = Audit(site_folder)
    with pytest.raises(AuditError):
        audit.append("answer", **facts)
    assert site_folder.audit.read_bytes() == b""
    audit.append("answer", value="Ä\n")
    assert verify_audit(site_folder).lines == 1


def test_appending_does_not_read_the_file_again(written: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(written)
    audit.append("answer")
    read: list[int] = []
    real: Callable[..., bytes] = os.pread
    monkeypatch.setattr(module.os, "pread", lambda fd, n, at: (read.append(n), real(fd, n, at))[1])
    audit.append("answer")
    assert not read
    Audit(written).append("answer")
    assert 0 < sum(read) < 200_000


def test_no_audit_yet_is_whole(site_folder: SiteFolder) -> None:
    assert verify_audit(site_folder) == module.AuditCheck(0, [], [])
    assert list(read_audit(site_folder)) == []


def test_reading_a_damaged_line_says_which(written: SiteFolder) -> None:
    lines = lines_of(written)
    written.audit.write_bytes(b"".join([*lines[:2], b"not a line\n", *lines[3:]]))
    with pytest.raises(AuditError, match="line 3"):
        list(read_audit(written))
    assert any("line 3 is not" in problem for problem in verify_audit(written).problems)
