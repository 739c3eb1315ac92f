"""Two centres, and sites of the first that are admitted and have not joined yet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from client.place import SiteFolder
from server.centre.folder import CentreFolder
from server.centre.provision import init_centre
from tests.client.join.joining.ladder import ADDRESS, climb


@pytest.fixture(scope="session")
def begun(tmp_path_factory) -> Path:
    """Two centres; north and south of the first are admitted and have not joined yet."""
    root = tmp_path_factory.mktemp("begun")
    before = Path.cwd()
    os.chdir(root)
    try:
        for name in ("uni", "other"):
            init_centre(root / name, name, ADDRESS)
        for site in ("north", "south"):
            climb(CentreFolder(root / "uni"), site)
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def here(begun, tmp_path, monkeypatch) -> Path:
    """A copy of all that for the test, as its working folder."""
    shutil.copytree(begun, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return (tmp_path / "here").resolve()


@pytest.fixture
def centre(here) -> CentreFolder:
    return CentreFolder(here / "uni")


@pytest.fixture
def north(here) -> SiteFolder:
    return SiteFolder(here / "north")
