"""What the wheel and the Flower App Bundle carry, and what they must not."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files

from common.code import code_digest


@pytest.fixture(scope="module")
def fab(repository: Path) -> bytes:
    """Build the bundle ``flwr build`` would; it walks a folder, so leave .venv and runs out."""
    files = {path.name: path for path in repository.iterdir() if path.is_file()}
    for folder in ("client", "common", "docs", "server", "simulations", "tests"):
        for path in (repository / folder).rglob("*"):
            if path.is_file():
                files[path.relative_to(repository).as_posix()] = path
    return build_fab_from_files(files)[0]


def test_fab_holds_the_code_of_both_sides_and_nothing_else(fab: bytes, repository: Path) -> None:
    names = set(zipfile.ZipFile(io.BytesIO(fab)).namelist())
    code = {
        path.relative_to(repository).as_posix()
        for package in ("client", "common", "server")
        for path in (repository / package).rglob("*.py")
    }
    page = {name for name in code if name.startswith("server/monitor/")}
    assert page, "the page is installed, and no part of a run"
    code -= page
    assert names == code | {"pyproject.toml", "LICENSE", ".info/CONTENT"}


def test_fab_is_small(fab: bytes) -> None:
    assert len(fab) < 2 * 1024**2, "Flower refuses more than 10 MB; code alone is far below"


def test_fab_has_the_code_digest_of_the_tree(fab: bytes, tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(fab)).extractall(tmp_path)
    question = "from common.code import code_digest; import sys; sys.stdout.write(code_digest())"
    answer = subprocess.run(
        [sys.executable, "-c", question], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert answer.stdout == code_digest()


def test_code_in_a_bundle_finds_the_embedded_weights_of_the_installed_package(
    fab: bytes, tmp_path: Path
) -> None:
    zipfile.ZipFile(io.BytesIO(fab)).extractall(tmp_path)
    question = (
        "import common.model.base as base, sys; from pathlib import Path;"
        "sys.exit(not (Path(base.__file__).is_relative_to(Path.cwd()) and base.embedded_file().is_file()))"
    )
    subprocess.run([sys.executable, "-c", question], cwd=tmp_path, check=True)


def test_wheel_holds_the_four_packages_and_nothing_else(
    repository: Path, package_files: list[Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*command, str(repository)], capture_output=True, check=True)
    (wheel,) = tmp_path.glob("fedcxr-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {path.relative_to(repository).as_posix() for path in package_files}
    assert {name for name in names if name.endswith((".safetensors", ".j2", ".css", ".toml"))}
