"""The command: one clear line for each mistake, documented exit codes, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner, Result

from client.cli import app as site_app
from common.config import known_keys
from common.console import EXIT_CODES
from server.cli import app as server_app
from simulations.cli import app
from simulations.phantom.site import write_site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small sites of image files and an experiment over them."""
    root = tmp_path_factory.mktemp("cli")
    for seed, name in enumerate(("north", "south")):
        write_site(root / name, name=name, n=40, seed=seed, size=32, scanner="reference")
    return root


def experiment(folder: Path, **over: Any) -> Path:
    """Write an experiment over the two folders."""
    labels = {"edema": "edema", "effusion": "effusion"}
    site = {
        n: {"site": {"data": {"table": f"{n}/studies.csv", "root": n}, "labels": labels}}
        for n in ("north", "south")
    }
    for name in site:
        site[name]["site"] |= over.get(name, {})
    tree = {
        "data": {"findings": ["edema", "effusion"], "image_size": 32, "root": str(folder)},
        "model": {"backbone": "timm:test_vit"},
        "pet": {"method": "head"},
        "rounds": {"count": 1},
        "evaluate": {"replicates": 20},
        "threads": 1,
        "arms": ["federated"],
        "sites": site,
    }
    file = folder / "experiment.toml"
    file.write_text(tomli_w.dumps(tree))
    return file


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def complaint(result: Result, code: str, exit_code: int) -> str:
    """Check the form every complaint has and return it."""
    assert result.exit_code == exit_code and exit_code in EXIT_CODES, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith(f"{code}  "), result.output
    assert len(lines) <= 3 and "Traceback" not in result.output
    return result.stderr


def test_a_misspelt_key(folder: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    told = complaint(invoke("run", experiment(folder), *out, "--set", "pet.rnak=4"), "E_CONFIG", 2)
    assert "'pet.rnak'" in told and "did you mean 'pet.rank'?" in told
    told = complaint(invoke("run", experiment(folder), *out, "--set", "pet.method=loar"), "E_CONFIG", 2)
    assert "'loar'" in told and "did you mean 'lora'?" in told
    told = complaint(invoke("run", experiment(folder), *out, "--set", "train.lr=nan"), "E_CONFIG", 2)
    assert "train.lr must be a finite number" in told
    told = complaint(invoke("run", experiment(folder), *out, "--arms", "local"), "E_CONFIG", 2)
    assert told.startswith("E_CONFIG  arms must include 'federated'")
    told = complaint(invoke("run", "dmeo"), "E_CONFIG", 2)
    assert "did you mean 'demo'?" in told
    assert not (tmp_path / "run" / "plan.toml").exists()


def test_a_missing_table(folder: Path, tmp_path: Path) -> None:
    broken = experiment(folder, north={"data": {"table": "north/nowhere.csv", "root": "north"}})
    told = complaint(invoke("run", broken, "--out", tmp_path / "run"), "E_TABLE", 3)
    assert "nowhere.csv" in told


def test_a_table_without_the_named_column(folder: Path, tmp_path: Path) -> None:
    broken = experiment(folder, south={"labels": {"edema": "Oedema", "effusion": "effusion"}})
    told = complaint(invoke("run", broken, "--out", tmp_path / "run"), "E_LABELS", 3)
    assert "'Oedema' is not in studies.csv" in told and "found:" in told and "fix:" in told
    broken = experiment(folder, south={"columns": {"patient": "MRN"}})
    told = complaint(invoke("run", broken, "--out", tmp_path / "run2"), "E_TABLE", 3)
    assert "'MRN' (columns.patient) is not in studies.csv" in told


def test_an_unreadable_image_is_set_aside_and_named_by_reason(folder: Path, tmp_path: Path) -> None:
    victim = sorted((folder / "north" / "images").iterdir())[3]
    sound = victim.read_bytes()
    victim.write_bytes(sound[: len(sound) // 2])
    try:
        result = invoke("run", experiment(folder), "--out", tmp_path / "run")
    finally:
        victim.write_bytes(sound)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("north:"))
    assert "1 set aside (truncated)" in line and victim.stem not in result.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["sites"]["north"]["quarantined"] == {"truncated": 1}


def test_too_many_unreadable_images_name_the_site_and_the_run_goes_on_without_it(
    folder: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "sites"
    shutil.copytree(folder, copy)
    for image in (copy / "north" / "images").iterdir():
        image.write_bytes(b"not an image")
    result = invoke("run", experiment(copy), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "north cannot take part: E_DATA" in result.output
    result = invoke("run", experiment(copy), "--out", tmp_path / "two", "--set", "rounds.quorum=2")
    assert "too few sites can take part" in complaint(result, "E_QUORUM", 6)


def test_a_default_run_prints_at_most_forty_lines_and_ends_with_the_report(
    folder: Path, tmp_path: Path
) -> None:
    result = invoke("run", experiment(folder), "--out", tmp_path / "run", "--arms", "local,federated")
    lines = result.output.strip().splitlines()
    assert result.exit_code == 0 and len(lines) <= 40
    assert lines[-1] == f"Report: {(tmp_path / 'run' / 'report.html').resolve()}"
    again = CliRunner().invoke(server_app, ["report", str(tmp_path / "run")])
    assert again.exit_code == 0 and again.output.strip() == lines[-1]
    told = CliRunner().invoke(server_app, ["status", str(tmp_path / "run"), "--all"])
    assert "Round 1: 2 of 2 sites" in told.output and "run finished" in told.output


def test_quiet_and_json(folder: Path, tmp_path: Path) -> None:
    quiet = invoke("run", experiment(folder), "--out", tmp_path / "quiet", "--quiet")
    assert quiet.output.strip().splitlines() == [f"Report: {(tmp_path / 'quiet' / 'report.html').resolve()}"]
    told = invoke("run", experiment(folder), "--out", tmp_path / "json", "--json")
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert {"round", "returned", "released"} <= {event["kind"] for event in events}
    broken = invoke("run", experiment(folder), "--json", "--set", "pet.rank=0")
    assert broken.exit_code == 2 and json.loads(broken.stdout)["code"] == "E_CONFIG"


def test_list_and_make_site(tmp_path: Path) -> None:
    assert "demo" in invoke("list").output and "real_sites" in invoke("list").output
    made = invoke("make-site", tmp_path / "site", "--studies", "12", "--size", "64", "--format", "dicom")
    assert made.exit_code == 0, made.output
    checked = CliRunner().invoke(site_app, ["index", str(tmp_path / "site" / "site.toml")])
    assert checked.exit_code == 0 and "train" in checked.output and "cardiomegaly" in checked.output
    complaint(invoke("make-site", tmp_path / "other", "--scanner", "refrence"), "E_CONFIG", 2)


def test_a_site_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(site_app, ["index", str(tmp_path / "site.toml")])
    complaint(result, "E_CONFIG", 2)
    result = CliRunner().invoke(server_app, ["status", str(tmp_path)])
    complaint(result, "E_RUN", 6)


def test_every_key_is_explained() -> None:
    lines = invoke("keys").output.splitlines()
    keys, meanings = lines[::2], lines[1::2]
    assert [key.partition(" = ")[0] for key in keys] == list(known_keys())
    assert all(len(meaning.strip()) > 3 for meaning in meanings)
    assert invoke("keys", "lora.").output.startswith("lora.alpha = 16.0")
