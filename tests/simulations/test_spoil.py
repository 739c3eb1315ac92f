"""A site with everything that can be wrong with one: written by the command, then indexed whole."""

from __future__ import annotations

import csv
import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from client.data.columns import NUL
from client.data.index import index_site
from client.data.reasons import CAUSES
from client.site import load_site
from common.overrides import read_toml
from simulations.cli import app
from simulations.experiment import Experiment
from simulations.phantom.spoiled import PLANTED
from simulations.run import run_experiment
from simulations.view import View

STUDIES = 150
GIGABYTE = 2**30


def make(folder: Path, *options: str) -> str:
    arguments = ["make-site", str(folder), "--spoil", "--studies", str(STUDIES), "--size", "128", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("spoilt")
    output = make(place)
    assert f"{place / 'spoiled.csv'}" in output and PLANTED not in output
    return place


@pytest.fixture(scope="module")
def index(folder: Path) -> pd.DataFrame:
    table, _ = index_site(load_site(folder / "site.toml"))
    return table


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        return list(csv.DictReader(lines))


def by_path(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, code in pairs:
        found.setdefault(path, []).append(code)
    return {path: sorted(codes) for path, codes in found.items()}


def test_every_spoiled_study_gets_its_code_and_every_sound_one_is_used(
    folder: Path, index: pd.DataFrame
) -> None:
    spoiled = by_path([(row["path"].replace("\0", NUL), row["code"]) for row in rows(folder / "spoiled.csv")])
    told = by_path(list(zip(index["path"], index["code"], strict=True)))
    wrong = {path: (codes, told.get(path)) for path, codes in spoiled.items() if told.get(path) != codes}
    assert not wrong
    sound = {path: codes for path, codes in told.items() if path not in spoiled}
    assert len(sound) == STUDIES and set(map(tuple, sound.values())) == {("",)}


def test_what_is_used_has_a_split_and_what_is_not_has_none(index: pd.DataFrame) -> None:
    assert ((index["split"] != "") == (index["code"] == "")).all()
    assert set(index["split"]) == {"train", "validation", "test", ""}


def test_labels_that_are_unsure_or_missing_are_not_annotated(index: pd.DataFrame) -> None:
    by_file = index.drop_duplicates("path").set_index("path")
    assert pd.isna(by_file.loc["cells/unsure.png", "label.effusion"])
    for name in ("label-nan", "label-empty"):
        assert by_file.loc[f"cells/{name}.png", ["label.edema", "label.effusion"]].isna().all()
    assert by_file.loc["cells/label-as-float.png", "label.edema"] == 1
    assert set(index["label.fracture"].dropna()) == {0.0}


def test_the_site_has_every_fault_and_is_mostly_sound(folder: Path) -> None:
    codes = Counter(row["code"] for row in rows(folder / "spoiled.csv"))
    assert set(codes) == {"", *CAUSES} - {"memory", "timeout", "crashed"}
    total = len(rows(folder / "studies.csv"))
    assert total == STUDIES + codes.total()
    assert (STUDIES + codes[""]) / total >= 0.6
    assert (folder / "studies.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert max(path.stat().st_size for path in (folder / "images" / "dicom").iterdir()) < 3_000_000


@pytest.mark.slow
def test_the_same_seed_spoils_the_same_way(folder: Path, tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path)  # over itself, links and pipes included
    assert content(tmp_path) == content(folder)
    make(tmp_path / "other", "--seed", "1")
    other = content(tmp_path / "other")
    assert other.keys() == content(folder).keys() and other != content(folder)


def content(folder: Path) -> dict[str, object]:
    """Return what lies in a folder, leaving out what an index has put there."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if name.parts[0] not in ("cache", "state", "other") and (path.is_file() or path.is_symlink()):
            found[name.as_posix()] = path.readlink() if path.is_symlink() else path.read_bytes()
    return found


def test_the_command_names_no_patient_and_no_worker_takes_a_gigabyte(
    folder: Path, repository: Path, tmp_path: Path
) -> None:
    make(tmp_path)
    command = [sys.executable, "-m", "client.cli", "index", str(tmp_path / "site.toml")]
    process = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of_children(process.pid))
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert PLANTED.lower() not in output.lower()
    assert 0 < peak < GIGABYTE
    page = next((tmp_path / "state" / "index").glob("*.html")).read_text(encoding="utf-8")
    assert "<b onclick" not in page


def memory_of_children(process: int) -> int:
    """Return the largest resident memory that a child of this process had so far, in bytes."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
        statuses = [Path(f"/proc/{child}/status").read_text() for child in " ".join(lists).split()]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peaks = [re.search(r"VmHWM:\s+(\d+)", status) for status in statuses]
    return max((int(peak[1]) * 1024 for peak in peaks if peak), default=0)


def test_nothing_is_logged_about_a_patient(folder: Path, caplog: pytest.LogCaptureFixture, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    index_site(load_site(folder / "site.toml"))
    printed = capfd.readouterr()
    for text in (caplog.text, printed.out, printed.err):
        assert PLANTED.lower() not in text.lower()


def test_a_federation_with_it_completes(folder: Path, tiny: Any, tmp_path: Path) -> None:
    body = read_toml(folder / "site.toml")
    del body["name"]
    sites = {"spoilt": {"site": body}, "north": {"phantom": {"studies": 60, "seed": 1, "size": 32}}}
    tree = tiny().model_dump(exclude={"sites", "data"})
    data = {"findings": ["cardiomegaly", "effusion"], "image_size": 32, "root": str(folder)}
    experiment = Experiment.build({**tree, "sites": sites, "data": data, "arms": ["federated", "pooled"]})
    out = tmp_path / "run"
    report = run_experiment(experiment, out, engine="inline", resume=False, view=View("quiet"))
    assert set(report.sites) == {"spoilt", "north"}
    assert all(part.status == "committed" and not part.missing for part in report.rounds)
    codes = Counter(row["code"] for row in rows(folder / "spoiled.csv"))
    assert report.sites["spoilt"].quarantined == {
        code: count for code, count in codes.items() if code and CAUSES[code].fault
    }
    assert PLANTED not in (out / "report.html").read_text() + (out / "report.json").read_text()


@pytest.mark.parametrize("options", [["--studies", "50"], ["--size", "32"], ["--findings", "edema"]])
def test_too_little_to_spoil(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["make-site", str(tmp_path / "site"), "--spoil", *options])
    assert result.exit_code == 2 and "E_CONFIG  --spoil needs" in result.stderr
    assert not (tmp_path / "site").exists()
