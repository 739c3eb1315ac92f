"""A view reads a ledger while it is written, and never writes it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import RunError
from server.facts.runs import Runs, summary
from server.facts.sites import site_rows
from server.facts.view import LedgerView
from server.ledger import Ledger, Measure


def test_what_the_writer_put_in_comes_out(view: LedgerView, made_up: Path) -> None:
    ledger = Ledger(made_up / "ledger.sqlite")
    records = ledger.rounds()
    assert [view.record(r["round"]) for r in records] == records and view.last_round() == 12
    assert view.record(13) is None and view.get("nothing") is None
    assert view.sites() == ledger.sites()
    assert view.events() == [*ledger.events()]
    assert view.events(after=3, limit=2) == [*ledger.events()][3:5]
    assert view.events(limit=2, newest_first=True) == [*ledger.events()][:-3:-1]
    assert view.evaluations("test") == ledger.evaluations("test")
    assert view.evaluations("test", "local") == {"local": ledger.evaluations("test")["local"]}
    assert view.config() is not None and view.config().rounds.count == 12  # type: ignore[union-attr]
    ledger.close()


def test_series_are_what_the_records_say(view: LedgerView) -> None:
    losses = view.series("loss")
    for number in range(1, 13):
        record = view.record(number)
        assert record is not None
        assert record["loss"] == {
            s: dict(points)[number] for s, points in losses.items() if number in dict(points)
        }
    assert [number for number, _ in view.series("lora-error")[""]] == [*range(1, 13)]
    areas = view.series("auroc", "edema")
    assert {0, 12} <= {number for number, _ in areas["south"]}, "0 at the start, 12 after the last round"
    for finding in ("cardiomegaly", "consolidation", "edema", "effusion"):
        owners = {site for site, facts in view.sites().items() if finding in facts["findings"]}
        assert view.series("auroc", finding).keys() == owners
    assert view.findings("ece") == ["cardiomegaly", "consolidation", "edema", "effusion"]
    assert {"auroc", "aggregate-norm", "weight"} <= {*view.names()}


def test_newest_finds_a_site_that_was_silent_for_long(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number in range(1, 80):
        returned = ["a", "b"] if number == 3 else ["a"]
        rows = [Measure("loss", "", site, number, number / 10) for site in returned]
        ledger.put_round(
            {"round": number, "cohort": ["a", "b"], "returned": returned, "missing": [], "rejected": {},
             "up": 1, "down": 1, "status": "committed"}, rows,
        )  # fmt: skip
    with LedgerView(tmp_path / "ledger.sqlite") as view:
        assert view.newest("loss") == {"a": 7.9}, "of one that was not heard for five rounds nothing is new"
        assert view.newest("loss", "edema") == {}
    ledger.close()


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with LedgerView(path) as view:
        assert (view.events(), view.sites(), view.last_round(), view.series("loss")) == ([], {}, 0, {})
        assert (view.config(), view.get("config"), view.detail("pairs"), view.names()) == (
            None,
            None,
            None,
            [],
        )
        assert view.revision() == 0
        path.touch()
        assert view.events() == [] and view.series("loss") == {} and view.newest("auroc") == {}
        before = view.revision()
        path.unlink()
        ledger = Ledger(path)
        ledger.event("plan", "it begins")
        assert view.revision() > before
        assert [event.text for event in view.events()] == ["it begins"]
        ledger.close()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"a diary, not a ledger" * 100)
    with pytest.raises(RunError, match="cannot be read"):
        LedgerView(path)
    with pytest.raises(RunError, match="no run"):
        LedgerView(tmp_path / "nowhere" / "ledger.sqlite")
    path.unlink()
    ledger = Ledger(path)
    ledger.put("schema", 99)
    ledger.close()
    with pytest.raises(RunError, match="later version"):
        LedgerView(path)


_WRITER = """
import sys
from pathlib import Path
from server.ledger import Ledger, Measure
ledger = Ledger(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    what, _, number = line.strip().partition(" ")
    if what == "event":
        ledger.event("x", number)
    elif what == "round":
        ledger.put_round({"round": int(number)}, [Measure("loss", "", "a", int(number), 0.5)])
    elif what == "read":
        list(ledger.events())
    print("done", flush=True)
"""


def test_the_revision_sees_every_commit_of_another_process_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdin is not None and writer.stdout is not None
    try:
        assert writer.stdout.readline() == "ready\n"
        with LedgerView(path) as view:

            def after(command: str) -> int:
                assert writer.stdin is not None and writer.stdout is not None
                writer.stdin.write(command + "\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "done\n"
                return view.revision()

            seen = view.revision()
            assert view.revision() == after("read") == seen
            for number in range(1, 4):
                for command in ("event", "round"):
                    now = after(f"{command} {number}")
                    assert now > seen
                    assert view.revision() == now, "it stays where it is"
                    seen = now
                assert view.series("loss") == {"a": [(k, 0.5) for k in range(1, number + 1)]}
    finally:
        writer.stdin.close()
        assert writer.wait(10) == 0
        writer.stdout.close()


def test_looking_changes_not_a_byte(copy_of, made_up: Path) -> None:
    folder = copy_of(made_up)
    path = folder / "ledger.sqlite"
    before = (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
    runs = Runs.of_folder(folder)
    run = runs.list()[0]
    view = run.view()
    view.revision(), summary(run, 1.0), site_rows(run, 1.0)
    for statement in (
        "INSERT INTO run VALUES ('title', '1')", "DELETE FROM events", "DROP TABLE rounds",
        "PRAGMA user_version = 7", "CREATE TABLE mine (x)",
    ):  # fmt: skip
        with pytest.raises(RunError, match="readonly"):
            view.rows(statement)
    runs.close()
    assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_whoever_may_only_read_the_folder_sees_it_all(tmp_path: Path) -> None:
    """The log of a ledger that nobody has open cannot be made there; beside a writer it is read."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.event("plan", "first")
    ledger.close()
    for parent in (*tmp_path.parents, tmp_path):
        if not parent.stat().st_mode & 0o005:
            parent.chmod(0o755)
    reading = threading.Thread(target=lambda: None)  # so that threads are loaded before the fork
    reading.start()
    reading.join()
    for expected in (1, 2):
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            status = 9
            try:
                with LedgerView(path) as view:
                    status = len(view.events())
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
        if expected == 1:
            ledger = Ledger(path)
            ledger.event("round", "second")
    ledger.close()


def test_a_folder_that_is_made_anew_is_another_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.event("plan", "old")
    with LedgerView(path) as view:
        seen = view.revision()
        assert view.events()[0].text == "old"
        ledger.close()
        for file in tmp_path.iterdir():
            file.unlink()
        gone = view.revision()
        assert gone > seen
        ledger = Ledger(path)
        ledger.event("plan", "new")
        assert view.revision() > gone
        assert view.events()[0].text == "new"
        ledger.close()


def test_reads_within_still_are_of_one_moment(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.put("key", 1)
    with LedgerView(tmp_path / "ledger.sqlite") as view:
        with view.still():
            assert view.get("key") == 1
            ledger.put("key", 2)
            assert view.get("key") == 1
            with view.still():
                assert view.get("key") == 1
        assert view.get("key") == 2
    ledger.close()


def test_many_threads_read_while_rounds_come_and_go(copy_of, made_up: Path) -> None:
    folder = copy_of(made_up)
    ledger = Ledger(folder / "ledger.sqlite")
    records = ledger.rounds()
    runs = Runs.of_folder(folder)
    run = runs.list()[0]
    wrong: list[object] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                rows = site_rows(run, 1.0)
                lengths = {len(row.participation) for row in rows}
                if len(lengths) != 1 or not lengths <= {4, 8, 12}:
                    wrong.append(lengths)
                run.view().revision()
                summary(run, 1.0)
            except Exception as error:  # noqa: BLE001
                wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        for last in (4, 12, 8):
            ledger.reset_rounds(records[:last])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert {len(row.participation) for row in site_rows(run, 1.0)} == {8}
    runs.close()
    ledger.close()


def test_a_locked_ledger_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    other = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    other.execute("PRAGMA journal_mode=DELETE")
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.5, lambda: other.execute("COMMIT")).start()
    with LedgerView(path) as view:
        assert view.events() == []
    other.close()
