"""``fedcxr-server export``: by name or by folder, once or until the run is over."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import typer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from server.monitor.export_commands import export
from server.monitor.tables import TABLES


@pytest.fixture
def call():
    app = typer.Typer()
    app.command()(export)

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def steps_of(folder, tag):
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return [event.step for event in reader.Scalars(tag)]


def test_tables_are_written_whole_by_name_and_by_folder(call, written_run, page_centre, tmp_path):
    for number in (1, 2):
        written_run.whole_round(number)
    centre = page_centre.folder.root
    done = call("pilot", "--csv", tmp_path / "csv", "--parquet", tmp_path / "pq", "--centre", centre)
    assert done.exit_code == 0, done.stderr
    assert f"{len(TABLES)} tables in {tmp_path / 'csv'}" in done.output
    assert {p.name for p in (tmp_path / "csv").iterdir()} == {f"{name}.csv" for name in TABLES}
    assert {p.name for p in (tmp_path / "pq").iterdir()} == {f"{name}.parquet" for name in TABLES}
    with (tmp_path / "csv" / "rounds.csv").open(newline="") as stream:
        assert [row["round"] for row in csv.DictReader(stream)] == ["1", "2"]
    rows = pq.read_table(tmp_path / "pq" / "measures.parquet").num_rows
    with (tmp_path / "csv" / "measures.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == rows > 0
    again = call(written_run.folder, "--csv", tmp_path / "other")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "other" / "rounds.csv").read_bytes() == (tmp_path / "csv" / "rounds.csv").read_bytes()


def test_what_cannot_be_done_is_said_in_a_sentence(call, written_run, page_centre, tmp_path):
    centre = page_centre.folder.root
    for arguments, problem in (
        (("pilot", "--centre", centre), "nothing is to be written"),
        (("pilt", "--centre", centre, "--csv", tmp_path), "there is no run 'pilt'"),
        ((tmp_path / "centre" / "runs" / "nothing", "--csv", tmp_path), "no centre.toml"),
        ((tmp_path, "--csv", tmp_path), "name the folder of one run"),
    ):
        done = call(*arguments)
        assert done.exit_code in (2, 6)
        assert problem in done.stderr


def test_the_ledger_is_as_it_was(call, written_run, tmp_path):
    written_run.whole_round(1)
    written_run.ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = (written_run.folder / "ledger.sqlite").read_bytes()
    names = sorted(p.name for p in written_run.folder.iterdir())
    assert (
        call(written_run.folder, "--csv", tmp_path / "csv", "--tensorboard", tmp_path / "tb").exit_code == 0
    )
    assert (written_run.folder / "ledger.sqlite").read_bytes() == before
    assert sorted(p.name for p in written_run.folder.iterdir()) == names


@pytest.fixture
def follow(page_centre, repository, tmp_path):
    """A process that follows the run, as the command line starts it."""
    code = "import typer; from server.monitor.export_commands import export; typer.run(export)"
    command = [sys.executable, "-c", code, "pilot", "--centre", str(page_centre.folder.root)]
    command += ["--tensorboard", str(tmp_path / "tb"), "--csv", str(tmp_path / "csv"), "--follow"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=repository,
        env={**os.environ, "PYTHONPATH": ".", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def wait_for(true, process, patience=30.0):
    end = time.monotonic() + patience
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_it_follows_until_the_run_is_over(written_run, follow, tmp_path):
    folder = tmp_path / "tb" / "pilot"

    def rounds():
        try:
            return steps_of(folder, "loss/north") if [*folder.glob("events.*")] else []
        except KeyError:
            return []

    for number in (1, 2, 3):
        written_run.whole_round(number)
        wait_for(lambda n=number: rounds() == list(range(1, n + 1)), follow)
    written_run.test()
    output, _ = follow.communicate(timeout=30)
    assert follow.returncode == 0, output
    assert "new values" in output
    assert steps_of(folder, "test-auroc/federated/macro/north") == [3]
    assert (tmp_path / "csv" / "rounds.csv").is_file()


def test_interrupted_it_says_how_to_go_on(written_run, follow, tmp_path):
    written_run.whole_round(1)
    wait_for(lambda: [*tmp_path.glob("tb/pilot/events.*")], follow)
    time.sleep(0.3)
    follow.send_signal(signal.SIGINT)
    output, _ = follow.communicate(timeout=30)
    assert follow.returncode == 0, output
    assert "give the same command again" in output
    assert "Traceback" not in output
    assert steps_of(tmp_path / "tb" / "pilot", "loss/north") == [1]
