"""A centre of a test's own, and the request of a site that it invited."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.join.joining import prepare_site
from server.centre.folder import CentreFolder
from server.centre.provision import init_centre, invite_site
from tests.server.centre.provision.provisioning import ADDRESS


@pytest.fixture(scope="session")
def begun(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("begun") / "centre"
    init_centre(root, "uni", ADDRESS)
    return root


@pytest.fixture
def centre(begun, tmp_path, monkeypatch) -> CentreFolder:
    """A centre of its own for the test, whose working folder holds it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begun, tmp_path / "centre")
    return CentreFolder((tmp_path / "centre").resolve())


@pytest.fixture
def request_file(centre, tmp_path) -> Path:
    """What site north answers its invitation with."""
    invite_site(centre, "north")
    return prepare_site(Path("north.invitation"), Path("north")).request
