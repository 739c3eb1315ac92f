"""What doctor promises whatever is wrong: nothing of a patient, exit codes, no packet when told so."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from client.join.checks import network
from client.join.checks.case import Outcome, Surroundings
from client.join.checks.proxy import find_proxy
from client.join.doctor import examine
from client.place import SiteFolder
from simulations.make_site import make_site

PATIENT = "DOE^JANE-1931"
"""Planted where patients are named; must never be printed."""
Scene = Any
"""A site to spoil and what to spoil it with; see conftest.py."""


def test_nothing_of_a_patient_is_printed(scene: Scene) -> None:
    table = scene.site.root / "studies.csv"
    table.write_text(
        re.sub(r"PHANTOM-\d+", PATIENT, table.read_text()).replace("images/", f"images/{PATIENT}/")
    )
    (scene.site.root / "images").rename(scene.site.root / "moved")
    (scene.site.root / "images").mkdir()
    shutil.move(scene.site.root / "moved", scene.site.root / "images" / PATIENT)
    images_unreadable_in(scene.site.root / "images" / PATIENT)
    found = told_by_the_command(scene.site, "--json", "--offline")
    shown = told_by_the_command(scene.site, "--offline")
    told = json.loads(found.stdout)
    assert {"group", "check", "level", "found", "fix"} == set(told["outcomes"][0])
    assert "12 truncated" in found.stdout
    assert found.returncode == shown.returncode == 8
    for output in (found, shown):
        assert PATIENT not in output.stdout + output.stderr


def test_the_command_ends_with_0_or_8_and_shows_failures_last(scene: Scene) -> None:
    healthy = told_by_the_command(scene.site)
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "nothing failed" in healthy.stdout
    scene.site.node_key.chmod(0o644)
    ill = told_by_the_command(scene.site)
    assert ill.returncode == 8
    assert ill.stdout.index("mend it: chmod 600") > ill.stdout.index("cache folder")
    assert "Traceback" not in ill.stderr


def test_before_the_welcome_only_what_can_be_known_is_judged(
    sites: dict[str, SiteFolder], tmp_path: Path
) -> None:
    found = examine(sites["east"].root, around=Surroundings(environment={}))
    assert found.healthy
    assert [outcome.check for outcome in found.of("warning")] == ["welcome"]
    assert {"port", "certificate", "clock", "centre"} <= {outcome.check for outcome in found.of("ok")}


def test_a_folder_of_dicom_files_is_judged_without_reading_it_all(tmp_path: Path) -> None:
    file = make_site(tmp_path / "west", "west", 8, 1, 48, format="dicom")
    text = file.read_text().replace('table = "studies.csv"', 'layout = "folder"')
    file.write_text(text[: text.index("[columns]")])
    found = examine(tmp_path / "west", offline=True, around=Surroundings(environment={}))
    told = {outcome.check: outcome.found for outcome in found.groups["data"]}
    assert told["studies"] == "8 files that may be images."
    assert told["images"] == "8 of 8 drawn images can be read."


def test_offline_opens_no_connection(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    found = examine(scene.site.root, offline=True, around=Surroundings(environment={}))
    assert found.healthy
    assert [outcome.check for outcome in found.groups["network"]] == ["network"]


def test_a_check_that_breaks_costs_no_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> Any:
        raise RuntimeError(PATIENT)

    def hangs(_: object) -> Any:
        time.sleep(60)
        yield Outcome("never", "ok", "")

    monkeypatch.setattr("client.join.doctor.GROUPS", {"a": (broken, hangs), "b": (lambda _: iter(()),)})
    monkeypatch.setattr("client.join.doctor.SECONDS", 0.3)
    told = [outcome.found for outcome in scene.examine().groups["a"]]
    assert told == ["this check itself failed (RuntimeError).", "took too long and was given up."]


def test_limits_and_headers_are_flowers() -> None:
    assert network.AHEAD == SYSTEM_TIME_TOLERANCE
    assert network.BEHIND == SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE
    theirs = (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
    assert theirs == (network.PUBLIC_KEY, network.SIGNATURE, network.TIMESTAMP)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["hub.example.org", "10.1.2.3", "localhost"])
@pytest.mark.parametrize(
    "excepted", ["", "*", "example.org", ".example.org", "10.1.2.3", "localhost", "other"]
)
def test_the_proxy_is_the_one_httpx_takes(
    host: str, excepted: str, scheme: Literal["http", "https"], monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    environment = {f"{scheme}_proxy": "http://127.0.0.1:3128", "no_proxy": excepted}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:
        direct = client._transport_for_url(httpx.URL(f"{scheme}://{host}:9443")) is client._transport
    assert (find_proxy(environment, host, scheme) is None) == direct


def images_unreadable_in(folder: Path) -> None:
    for image in folder.iterdir():
        image.write_bytes(image.read_bytes()[:200])


def told_by_the_command(site: SiteFolder, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-m", "client.cli", "doctor", str(site.root), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
