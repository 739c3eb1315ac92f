"""The rehearsal at a site: a whole run behind the site's own gate, and no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from client.gate.audit import read_audit, verify_audit
from client.gate.policy import policy_text
from client.place import SiteFolder
from common.errors import RefusedError
from simulations.make_site import make_site


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site as ``fedcxr-site init`` leaves it, with DICOM images."""
    folder = tmp_path_factory.mktemp("sites") / "north"
    make_site(folder, "north", 6, 1, 48, findings=("effusion", "edema"), format="dicom")
    with (folder / "site.toml").open("a") as file:
        file.write("\n[device]\nthreads = 1\n")
    (folder / "policy.toml").write_text(policy_text())
    return folder


@pytest.fixture(scope="module")
def rehearsed(north: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    kept = tmp_path_factory.mktemp("kept")
    before = contents(north)
    done = rehearse(north, "--keep", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(north) == before
    return done.stdout, kept


@pytest.mark.slow
def test_every_step_of_a_run_is_shown(rehearsed: tuple[str, Path]) -> None:
    shown, _ = rehearsed
    asked = re.findall(r"^   asked   (.*)", shown, re.MULTILINE)
    assert [line.split(",")[0] for line in asked] == [
        "how many studies there are",
        "train alone",
        "train round 1",
        "train round 2",
        "measure the federated model on the validation studies",
        "measure the local model on the test studies",
        "measure the federated model on the test studies",
    ]
    assert len(re.findall(r"leaves  an update of [\d,]+ float32 numbers \([\d,]+ bytes\)", shown)) == 2
    assert "(DICOM)" in shown and "Findings: effusion, edema." in shown
    assert "Nothing was refused" in shown
    assert re.search(r"A round of 3 sites, one after the other, took [\d.]+ s", shown)


@pytest.mark.slow
def test_every_byte_that_would_leave_is_audited(rehearsed: tuple[str, Path]) -> None:
    shown, kept = rehearsed
    folder = SiteFolder.of(kept / "sites" / "north")
    check = verify_audit(folder)
    assert not check.problems
    kinds = [line["kind"] for line in read_audit(folder)]
    assert kinds == ["approved", *["instruction", "answer"] * 7]
    audited = sum(line["bytes"] for line in read_audit(folder) if line["kind"] == "answer")
    assert f"{audited:,} bytes would have left north in 7 answers, and as many are in its audit" in shown
    assert "Connections to anywhere: none was tried" in shown


@pytest.mark.slow
def test_the_run_made_a_release(rehearsed: tuple[str, Path]) -> None:
    _, kept = rehearsed
    assert any((kept / "run" / "release").glob("*.safetensors"))


@pytest.mark.slow
def test_a_policy_that_forbids_the_plan_refuses_it(north: Path, tmp_path: Path) -> None:
    for name in ("site.toml", "studies.csv"):
        (tmp_path / name).write_bytes((north / name).read_bytes())
    text = policy_text().replace(
        'stages = ["enrol", "pretrain", "train", "local", "evaluate", "personalise"]', 'stages = ["enrol"]'
    )
    assert '["enrol"]' in text
    (tmp_path / "policy.toml").write_text(text)
    done = rehearse(tmp_path)
    assert done.returncode == RefusedError.exit_code, done.stdout + done.stderr
    assert "REFUSED at north with E_POLICY" in done.stdout
    assert "train round 1" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_site_without_a_policy_is_told_what_to_do(north: Path, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_bytes((north / "site.toml").read_bytes())
    done = rehearse(tmp_path)
    assert done.returncode == 2
    assert "there is no policy file" in done.stderr


CUT_OFF = """
import socket, subprocess, sys
from simulations.no_network import cut_off
done = cut_off()
for family, address in ((socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), (socket.AF_INET6, ("::1", 9))):
    for call in ("connect", "connect_ex"):
        try:
            getattr(socket.socket(family), call)(address)
        except PermissionError:
            continue
        sys.exit("a connection was not refused")
try:
    socket.getaddrinfo("example.org", 443)
    sys.exit("a name was looked up")
except PermissionError:
    pass
here, there = socket.socketpair()
here.sendall(b"between processes of one machine")
if len(done.attempts) != 5:
    sys.exit(f"{done.attempts}")
if done.devices is not None:
    child = "import socket; socket.create_connection(('127.0.0.1', int(__import__('sys').argv[1])), 5)"
    ended = subprocess.run([sys.executable, "-c", child, sys.argv[1]], capture_output=True, check=False)
    if ended.returncode == 0:
        sys.exit("a child process reached a server")
print("kernel" if done.devices is not None else "python")
"""


def test_a_process_that_gave_up_the_network_reaches_nobody() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0)
        port = str(listener.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", CUT_OFF, port], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip() in ("kernel", "python")
        with pytest.raises(BlockingIOError):
            listener.accept()


def rehearse(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "client.cli", "rehearse", str(place), *options]
    return subprocess.run(whole, capture_output=True, text=True, timeout=110, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_what_a_policy_lets_leave_beyond_the_usual_is_rehearsed_too(north: Path, tmp_path: Path) -> None:
    """The site's own model and the sums to calibrate by pass the gate, and every byte is in the audit."""
    for name in ("site.toml", "studies.csv"):
        (tmp_path / name).write_bytes((north / name).read_bytes())
    with (tmp_path / "site.toml").open("a") as file:
        file.write("\n[evaluate]\nmin_cell = 2\n")
    text = policy_text().replace("local_adapter = false", "local_adapter = true")
    text = text.replace("min_cell = 11", "min_cell = 2")
    usual = 'stages = ["enrol", "pretrain", "train", "local", "evaluate", "personalise"]'
    (tmp_path / "policy.toml").write_text(text.replace(usual, usual.replace("]", ', "calibrate"]')))
    done = rehearse(tmp_path, "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train alone, to compare with; the model is asked for" in done.stdout
    assert len(re.findall(r"leaves  an update", done.stdout)) == 3
    assert done.stdout.count("sums over the validation studies") >= 3
    assert "measure the local:east model on the test studies" in done.stdout
    assert "and as many are in its audit" in done.stdout
    run = tmp_path / "kept" / "run"
    assert len(list((run / "locals").iterdir())) == 3
    assert (run / "release" / "calibration.json").is_file()
