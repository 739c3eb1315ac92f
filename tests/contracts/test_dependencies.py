"""What the code imports, what pyproject.toml declares and what constraints.txt pins agree."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = {"client", "common", "server", "simulations"}
DISTRIBUTION = {
    "PIL": "pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "imagehash": "ImageHash",
    "markupsafe": "MarkupSafe",
    "mlflow": "mlflow-skinny",
    "prometheus_client": "prometheus-client",
    "sklearn": "scikit-learn",
    "sqlalchemy": "SQLAlchemy",
    "swagger_ui_bundle": "swagger-ui-bundle",
    "tomli_w": "tomli-w",
}
"""Modules that are not called as what one installs."""
DECODERS = {"pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm"}
NOT_IMPORTED = {"plotly"} | DECODERS
"""Pydicom finds decoders of pixels; of plotly the script it packages is served to browsers."""


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, Requirement]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def test_declared_is_what_is_imported(syntax: dict[str, ast.Module], project: dict[str, Any]) -> None:
    imported = {module for tree in syntax.values() for module in _imports(tree)}
    outside = {DISTRIBUTION.get(m, m) for m in imported - OURS - sys.stdlib_module_names}
    declared = {Requirement(line).name for line in project["project"]["dependencies"]}
    extras = project["project"]["optional-dependencies"]
    optional = {Requirement(line).name for name in extras if name != "dev" for line in extras[name]}
    assert outside == declared - NOT_IMPORTED | optional


def test_what_is_optional_is_tested(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    optional = {line for name in extras if name != "dev" for line in extras[name]}
    assert optional <= {*extras["dev"]}


def test_pins_are_exact_and_carry_no_local_version(pins: dict[str, Requirement]) -> None:
    vague = [str(pin) for pin in pins.values() if [s.operator for s in pin.specifier] != ["=="]]
    assert not vague
    assert not [str(pin) for pin in pins.values() if "+" in str(pin)]


def test_pins_lie_in_the_declared_ranges(pins: dict[str, Requirement], project: dict[str, Any]) -> None:
    lines = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    for declared in map(Requirement, lines):
        pin = pins[canonicalize_name(declared.name)]
        (pinned,) = pin.specifier
        assert declared.specifier.contains(pinned.version), f"{pin} is outside {declared}"


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
