"""A whole deployment by the guides' commands: equal to the simulation, accounted for, silent on patients."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import sqlite3
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PLAN = """
seed = 5
[data]
findings = "effusion, cardiomegaly"
image_size = 48
[model]
backbone = "timm:test_vit"
[pet]
method = "lora"
rank = 2
[train]
batch_size = 16
[rounds]
count = 2
sites = 3
quorum = 3
deadline = 240.0
[evaluate]
replicates = 50
"""
SITES = ("north", "south", "east")


def sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(deploy: Callable[[str], Any]) -> Any:
    """A centre and three hospitals, from nothing to a release; a fourth hospital's table is broken."""
    planted = sibling("planted")
    d = deploy("whole")
    d.make_centre()
    d.export("north", "--studies", "120", "--seed", "1", "--size", "64")
    d.export("south", "--studies", "90", "--seed", "2", "--size", "64", "--scanner", "cr_plate")
    d.export("east", "--studies", "90", "--seed", "3", "--size", "64", "--format", "dicom")
    d.export("west", "--studies", "60", "--seed", "4", "--size", "64")
    d.planted = [
        *planted.plant_in_table(d.sites["north"], "Nora", 90),
        *planted.plant_in_table(d.sites["south"], "Sven", 60),
        *planted.plant_in_headers(d.sites["east"], "Eva", 50),
    ]
    west = d.sites["west"] / "site.toml"
    west.write_text(west.read_text().replace('"studies.csv"', '"WestFerdinandZwicky.csv"'))
    d.planted.append("WestFerdinandZwicky")
    plan = d.plan(PLAN)
    for name in (*SITES, "west"):
        d.join(name, approve=False)
        d.approve(name, "--plan", plan)
    d.up((*SITES, "west"))
    d.server("run", plan, "--name", "first", "--yes", timeout=600)
    d.released = d.root / "released"
    d.server("release", "first", "--out", d.released)
    assert d.stop("north") == 0
    assert d.stop("south") == 0
    assert d.stop("east") == 0
    assert d.stop("west") == 0
    assert d.stop("centre") == 0
    return d


def simulate(d: Any, folder: Path) -> Path:
    """The same plan over the same exports by the researcher's engine, in this process."""
    from common.config import RunConfig
    from simulations.engine import run_inline

    files = {}
    for name in SITES:
        toml = folder / name / "site.toml"
        shutil.copytree(d.sites[name], toml.parent, ignore=shutil.ignore_patterns("node", "cache", "state"))
        files[name] = toml
    config = RunConfig.build(tomllib.loads(PLAN))
    run_inline(config, files, folder / "run")
    return folder / "run" / "release"


def test_the_adapter_is_the_simulations_and_peft_opens_it(finished: Any, tmp_path: Path) -> None:
    import common.model.torchvision_shim  # noqa: F401  isort: skip
    import timm
    from peft import PeftModel

    simulated = simulate(finished, tmp_path) / "adapter_model.safetensors"
    released = finished.released / "adapter_model.safetensors"
    assert hashlib.sha256(released.read_bytes()).digest() == hashlib.sha256(simulated.read_bytes()).digest()
    backbone = timm.create_model("test_vit", num_classes=2, img_size=48)
    opened = PeftModel.from_pretrained(backbone, str(finished.released))
    assert any("lora_B" in name for name, _ in opened.named_parameters())


def test_the_broken_hospital_is_named_with_a_code_and_stops_nobody(finished: Any) -> None:
    refused = [e for e in finished.events("first", "refused") if e["site"] == "west"]
    assert refused and json.loads(refused[0]["facts"])["code"] == "E_TABLE"
    rounds = [json.loads(e["facts"]) for e in finished.events("first", "round")]
    assert [r["status"] for r in rounds] == ["committed", "committed"]
    assert all(r["returned"] == sorted(SITES) for r in rounds)


def outside(d: Any) -> dict[str, bytes]:
    """Every byte that is not a hospital's: the wire's plaintext, all of the centre's files, what it said."""
    found = {"the wire": d.wire.captured()}
    for file in d.centre.rglob("*"):
        if file.is_file():
            found[str(file.relative_to(d.root))] = file.read_bytes()
    found["the centre's terminal"] = (d.root / "centre.out").read_bytes()
    said = (words for command, words in d.said if command.startswith("fedcxr-server"))
    found["the centre's commands"] = "\n".join(said).encode()
    return found


def test_no_planted_string_is_outside_the_sites(finished: Any) -> None:
    planted = [text.encode() for text in finished.planted]
    assert len(set(planted)) >= 200
    inside = b"".join(
        file.read_bytes() for name in SITES for file in finished.sites[name].rglob("*.csv") if file.is_file()
    )
    assert sum(text in inside for text in planted) > 100, "the strings must have been there to leak"
    places = outside(finished)
    assert len(places["the wire"]) > 100_000
    assert {"centre/superlink.sqlite", "centre/runs/first/ledger.sqlite"} <= set(places)
    leaked = [(place, text) for place, data in places.items() for text in planted if text in data]
    assert not leaked
    for text in (b"Zwicky", b"Zw\x00", str(finished.root).encode()):
        where = [place for place, data in places.items() if text in data and place != "the centre's commands"]
        where = [place for place in where if not place.startswith(("centre/logs", "the centre's terminal"))]
        assert not where or text == str(finished.root).encode(), where


def requests(captured: bytes) -> Counter[str]:
    """Bytes of request bodies by call, parsed from HTTP/1.1 as the sites wrote it."""
    sizes: Counter[str] = Counter()
    for match in re.finditer(rb"POST (/v1/fleet/\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", captured, re.DOTALL):
        length = re.search(rb"(?i)content-length: (\d+)", match[2])
        assert length, "a site sent a body without saying how long it is"
        name = match[1].decode().rpartition("/")[2].title().replace("-", "")
        sizes[name] += int(length[1])
    return sizes


def test_every_byte_that_left_is_in_the_audit(finished: Any) -> None:
    heard = requests(finished.wire.captured())
    told: Counter[str] = Counter()
    for name in (*SITES, "west"):
        for line in finished.audit(name):
            if line["kind"] == "traffic":
                told.update({route: facts["bytes"] for route, facts in line["routes"].items()})
    assert told == heard
    for name in SITES:
        answers = [line for line in finished.audit(name) if line["kind"] == "answer"]
        updates = [line for line in answers if "update" in line["records"]]
        assert len(updates) == 2
        adapter = finished.run_folder("first") / "checkpoints" / "round-0001" / "manifest.json"
        payload = json.loads(adapter.read_text())["record"]["payload"][name]
        assert updates[0]["records"]["update"]["bytes"] == payload


def test_audit_verify_finds_one_edited_deleted_or_reordered_line(finished: Any, tmp_path: Path) -> None:
    folder = finished.sites["north"]
    assert "whole" in finished.site("audit", "verify", folder)
    original = (folder / "node" / "audit.jsonl").read_text().splitlines()
    assert len(original) > 10

    def verdict(lines: list[str]) -> str:
        copy = tmp_path / "north"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("images", "cache", "*.sock"))
        (copy / "node" / "audit.jsonl").write_text("\n".join(lines) + "\n")
        return finished.site("audit", "verify", copy, exit_code=7)

    middle = len(original) // 2
    edited = original[:]
    edited[middle] = re.sub(r'"time": ?"2', '"time": "3', edited[middle])
    assert edited != original
    assert str(middle + 1) in verdict(edited)
    verdict(original[:middle] + original[middle + 1 :])
    verdict(original[:-1])
    swapped = original[:]
    swapped[middle], swapped[middle + 1] = swapped[middle + 1], swapped[middle]
    verdict(swapped)


def test_the_centres_database_holds_no_site_words(finished: Any) -> None:
    with sqlite3.connect(finished.centre / "runs" / "first" / "ledger.sqlite") as ledger:
        texts = [row[0] for row in ledger.execute("SELECT text FROM events")]
    assert any("west" in text for text in texts)
    assert not any("Zwicky" in text or ("/" in text and "studies.csv" in text) for text in texts)
