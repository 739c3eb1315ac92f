"""Downloads: a fixed list of files, whole and truthful, from a monitor that stays small."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sqlite3
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from server.facts.runs import Runs
from server.ledger import Ledger
from server.monitor import downloads
from server.monitor.downloads import FILES, offers
from server.monitor.state import Monitor
from server.monitor.tables import TABLES
from simulations.benchmarks.large_ledger import write_large_ledger

SOME = [file for file in FILES if not file.endswith(".parquet")] + ["pairs.parquet", "sites.parquet"]
"""A Parquet file takes a process and a second; the tables' own tests read all of them."""
ADAPTER = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "first"
    write_large_ledger(folder, rounds=5, sites=4, findings=2)
    release = folder / "release"
    release.mkdir()
    (release / "adapter_model.safetensors").write_bytes(ADAPTER)
    (release / "adapter_config.json").write_text("{}")
    (release / "secret.txt").write_text("not part of a release")
    (folder / "report.html").write_text("<p>the report</p>")
    (folder / "report.json").write_text("{}")
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.put("released", {"round": 5, "sha256": hashlib.sha256(ADAPTER).hexdigest()})
    ledger.close()
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run of a test's own, to spoil as it likes."""
    return Path(shutil.copytree(made, tmp_path / "runs" / "first"))


@pytest.fixture
def client(run: Path, page_serving: Any) -> Iterator[httpx.Client]:
    monitor = Monitor(Runs.of_folder(run.parent))
    with (
        page_serving(monitor) as address,
        httpx.Client(base_url=f"{address}/runs/first/download/", timeout=60) as opened,
    ):
        yield opened
    monitor.runs.close()


def test_every_file_can_be_had(client: httpx.Client) -> None:
    kinds = {"html": "text/html", "json": "application/json", "toml": "application/toml", "csv": "text/csv"}
    kinds |= {"zip": "application/zip", "parquet": "application/vnd.apache.parquet"}
    for file in SOME:
        answer = client.get(file)
        assert answer.status_code == 200, file
        assert answer.content
        assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''first-{file}"
        assert answer.headers["content-type"].split(";")[0] == kinds[file.rpartition(".")[2]]


def test_plain_files_are_what_lies_there(client: httpx.Client, run: Path) -> None:
    for file in ("report.html", "report.json", "plan.toml"):
        assert client.get(file).content == (run / file).read_bytes()


def test_a_release_is_packed_as_it_is_and_nothing_else(client: httpx.Client, run: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(client.get("release.zip").content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
        assert archive.read("adapter_model.safetensors") == ADAPTER
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.skipif(shutil.which("unzip") is None, reason="no unzip")
def test_another_tool_opens_what_was_packed(client: httpx.Client, tmp_path: Path) -> None:
    for name in ("release.zip", "ledger.zip"):
        (tmp_path / name).write_bytes(client.get(name).content)
        done = subprocess.run(
            ["unzip", "-t", str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        assert "No errors detected" in done.stdout


@pytest.mark.parametrize("change", ["byte", "ledger"])
def test_an_adapter_that_the_ledger_does_not_name_is_not_handed_out(
    change: str, client: httpx.Client, run: Path
) -> None:
    if change == "byte":
        (run / "release" / "adapter_model.safetensors").write_bytes(b"\1" + ADAPTER[1:])
    else:
        ledger = Ledger(run / "ledger.sqlite")
        ledger.put("released", None)
        ledger.close()
    answer = client.get("release.zip")
    assert (answer.status_code, answer.json()["code"]) == (500, "E_CHECKPOINT")


def test_the_ledger_is_a_whole_copy_with_its_tables(client: httpx.Client, run: Path, tmp_path: Path) -> None:
    writer = Ledger(run / "ledger.sqlite")
    writer.event("note", "still in the log beside the file")
    with zipfile.ZipFile(io.BytesIO(client.get("ledger.zip").content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["ledger.sqlite", *(f"{name}.csv" for name in TABLES)]
        archive.extractall(tmp_path / "copy")
    writer.close()
    copy = tmp_path / "copy" / "ledger.sqlite"
    with closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        (text,) = db.execute("SELECT text FROM events ORDER BY id DESC LIMIT 1").fetchone()
        count = db.execute("SELECT count(*) FROM measures").fetchone()[0]
    assert text == "still in the log beside the file"
    assert (tmp_path / "copy" / "measures.csv").read_bytes().count(b"\r\n") == count + 1


def test_a_table_is_the_same_by_both_ways(client: httpx.Client) -> None:
    lines = client.get("rounds.csv").text.splitlines()
    parquet = pq.read_table(io.BytesIO(client.get("rounds.parquet").content))
    assert lines[0].split(",") == parquet.column_names
    assert len(lines) - 1 == parquet.num_rows == 5


def test_nothing_else_can_be_asked_for(client: httpx.Client) -> None:
    for file in (
        "ledger.sqlite",
        "secret.txt",
        "rounds.xlsx",
        "..%2fledger.sqlite",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "release%2fadapter_config.json",
        "rounds.csv%00",
        ".",
    ):
        assert client.get(file).status_code == 404, file


def test_what_is_not_there_yet_is_said_in_a_sentence(client: httpx.Client, run: Path) -> None:
    for file in ("report.html", "report.json"):
        (run / file).unlink()
    for path in (run / "release").iterdir():
        path.unlink()
    for file in ("report.html", "report.json", "release.zip"):
        answer = client.get(file)
        assert answer.status_code == 404
        assert answer.json()["detail"].endswith("once the run has finished.")
    found = Runs.of_folder(run.parent).find("first")
    assert {"report.html", "report.json", "release.zip"} & {offer.file for offer in offers(found)} == set()


def test_only_two_files_are_made_at_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_PATIENCE", 0.1)
    assert downloads._making.acquire() and downloads._making.acquire()
    try:
        answer = client.get("ledger.zip")
        assert (answer.status_code, answer.json()["code"]) == (503, "E_BUSY")
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("rounds.csv").status_code == 200
    finally:
        downloads._making.release()
        downloads._making.release()
    assert client.get("ledger.zip").status_code == 200


def test_nothing_is_left_behind(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    client.get("ledger.zip")
    client.get("events.parquet")
    assert list(scratch.iterdir()) == []


def test_a_runs_folder_is_only_read(client: httpx.Client, run: Path) -> None:
    def state() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in run.rglob("*")
            if path.is_file() and "-shm" not in path.name
        }

    before = state()
    for file in SOME:
        client.get(file)
    assert {name: content for name, content in state().items() if content} == before


def test_the_api_offers_what_there_is(client: httpx.Client) -> None:
    base = str(client.base_url).partition("/runs/")[0]
    told = json.loads(httpx.get(f"{base}/api/v1/runs/first", timeout=60).text)
    assert told["files"] == list(FILES)
