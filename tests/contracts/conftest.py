"""The sources and pyproject.toml, as every contract reads them."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("client", "common", "server", "simulations")


@pytest.fixture(scope="session")
def project(repository: Path) -> dict[str, Any]:
    """pyproject.toml, read."""
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def package_files(repository: Path) -> list[Path]:
    """Every file of the four packages."""
    found = [path for package in PACKAGES for path in (repository / package).rglob("*")]
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


@pytest.fixture(scope="session")
def syntax(repository: Path, package_files: list[Path]) -> dict[str, ast.Module]:
    """Every Python file of the four packages, parsed, by path relative to the repository."""
    return {
        path.relative_to(repository).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in package_files
        if path.suffix == ".py"
    }
