"""A bundle holds the installed code, the same bytes wherever it is built, and any change in one is named."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import pytest
import tomli_w
from flwr.cli.build import build_fab_from_files
from flwr.cli.config_utils import get_fab_config
from flwr.common.config import flatten_dict, fuse_dicts

from common.bundle import bundle_code_digest, differences, installed_files, read_bundle
from common.code import PACKAGES, code_digest
from common.config import RunConfig
from common.errors import ApprovalError
from server.centre.bundle import build_bundle

BUILD = """
import hashlib, sys, warnings
warnings.simplefilter("ignore")
from server.centre.bundle import build_bundle
import common
sys.stdout.write(common.__file__ + " " + hashlib.sha256(build_bundle()).hexdigest())
"""


@pytest.fixture(scope="module")
def fab() -> bytes:
    return build_bundle()


def packed(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(written, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    return written.getvalue()


def built_in(folder: Path, cwd: Path) -> tuple[str, str]:
    """Where the packages came from and the bundle's hash, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", BUILD],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    place, sha256 = done.stdout.rsplit(" ", 1)
    return place, sha256


def test_it_holds_the_code_of_both_sides_a_manifest_the_licence_and_nothing_else(
    fab: bytes, repository: Path
) -> None:
    code = {
        path.relative_to(repository).as_posix()
        for package in PACKAGES
        for path in (repository / package).rglob("*.py")
        if not path.is_relative_to(repository / "server" / "monitor")
    }
    files = read_bundle(fab)
    assert files.keys() == code | {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    assert files["LICENSE"] == (repository / "LICENSE").read_bytes()
    assert all(files[name] == (repository / name).read_bytes() for name in code)


def test_its_code_has_the_digest_of_the_installed_code(fab: bytes) -> None:
    assert bundle_code_digest(fab) == code_digest()
    assert differences(fab) == []


def test_flower_takes_every_key_of_a_run(fab: bytes) -> None:
    app = get_fab_config(fab)["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    flat = RunConfig().to_flat()
    assert flatten_dict(app["config"]) == flat
    assert fuse_dicts(flatten_dict(app["config"]), flat, check_keys=True) == flat


def test_it_decides_the_same_as_the_repositorys_own(fab: bytes, repository: Path) -> None:
    files = {path.name: path for path in repository.iterdir() if path.is_file()}
    for package in PACKAGES:
        for path in (repository / package).rglob("*.py"):
            files[path.relative_to(repository).as_posix()] = path
    own = build_fab_from_files(files)[0]
    assert differences(own) == []
    assert bundle_code_digest(own) == bundle_code_digest(fab)


def test_the_same_bytes_from_a_copy_elsewhere_that_is_no_checkout(
    fab: bytes, repository: Path, tmp_path: Path
) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(repository / package, tmp_path / "elsewhere" / package, ignore=ignored)
    assert build_bundle() == fab
    place, sha256 = built_in(tmp_path / "elsewhere", tmp_path)
    assert place.startswith(str(tmp_path))
    assert sha256 == hashlib.sha256(fab).hexdigest()


@pytest.mark.slow
def test_the_same_bytes_from_an_unpacked_wheel(fab: bytes, repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*command, str(repository)], capture_output=True, check=True)
    (wheel,) = tmp_path.glob("fedcxr-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    place, sha256 = built_in(tmp_path / "installed", tmp_path)
    assert place.startswith(str(tmp_path))
    assert sha256 == hashlib.sha256(fab).hexdigest()


# ------------------------------------------------------------------ what differs is named


def test_a_byte_a_file_more_and_a_file_less_are_named(fab: bytes) -> None:
    files = read_bundle(fab)
    files["client/egress_off.py"] = b""
    del files["common/wire.py"]
    files["client/worker.py"] = files["client/worker.py"].replace(b"a", b"b", 1)
    changed = packed(files)
    assert differences(changed) == [
        "client/egress_off.py is not installed here",
        "client/worker.py differs from the installed one",
        "common/wire.py is installed here and not in the bundle",
    ]
    assert bundle_code_digest(changed) != code_digest()


@pytest.mark.parametrize(
    "name", ["sitecustomize.py", "flwr/__init__.py", "client/data.so", "x.pth", "a/b.json"]
)
def test_a_file_that_is_not_ours_is_named(fab: bytes, name: str) -> None:
    assert differences(packed(read_bundle(fab) | {name: b"x"})) == [f"{name} is not installed here"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda app: app["components"].update(clientapp="evil:app"), "components.clientapp is 'evil:app'"),
        (lambda app: app["components"].update(agentapp="x:y"), "components.agentapp is 'x:y'"),
        (lambda app: app["config"]["pet"].update(rank=64), "config.pet.rank is 64, here 8"),
        (lambda app: app["config"]["pet"].update(rank=8.0), "config.pet.rank is 8.0, here 8"),
        (lambda app: app["config"].pop("seed"), "config.seed is None, here 0"),
        (lambda app: app["config"].update(more=1), "config.more is 1, here None"),
        (lambda app: app.pop("config"), "is not a manifest of fedcxr"),
        (lambda app: app.update(publisher="somebody"), "another publisher"),
    ],
)
def test_a_manifest_that_decides_otherwise_is_named(fab: bytes, change: object, said: str) -> None:
    files = read_bundle(fab)
    tree = tomllib.loads(files["pyproject.toml"].decode())
    change(tree["tool"]["flwr"]["app"])  # type: ignore[operator]
    told = differences(packed(files | {"pyproject.toml": tomli_w.dumps(tree).encode()}))
    assert len(told) == 1 and said in told[0]


def test_every_installed_file_is_compared(fab: bytes) -> None:
    files = read_bundle(fab)
    mine = list(installed_files())
    assert len(mine) > 100
    emptied = packed(files | dict.fromkeys(mine, b"\0"))
    assert differences(emptied) == sorted(f"{name} differs from the installed one" for name in mine)


# ------------------------------------------------------------------ what is no bundle


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 1000, packed({})])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(ApprovalError):
        read_bundle(data)


@pytest.mark.parametrize("name", ["../up.py", "/etc/passwd", "a\\b.py", "a//b.py", "a/./b.py", "a\n.py"])
def test_a_name_that_leads_out_or_misleads_is_refused(name: str) -> None:
    with pytest.raises(ApprovalError, match="file names"):
        read_bundle(packed({"pyproject.toml": b"", name: b""}))


def test_a_name_twice_is_refused() -> None:
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("pyproject.toml", b"")
        archive.writestr("client/app.py", b"good")
        archive.writestr("client/app.py", b"bad")
    with pytest.raises(ApprovalError, match="file names"):
        read_bundle(written.getvalue())


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pyproject.toml", bytes(30_000_000))
    with pytest.raises(ApprovalError, match="more than code"):
        read_bundle(written.getvalue())


def test_a_damaged_bundle_is_refused(fab: bytes) -> None:
    broken = bytearray(fab)
    place = broken.index(b"def build_bundle")
    broken[place] ^= 1
    with pytest.raises(ApprovalError):
        read_bundle(bytes(broken))
