"""Rules of the house that a linter does not know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

VAGUE = {"utils", "helpers", "misc", "types", "logging", "random"}
"""Names that hide a subject or shadow the standard library."""


def test_imports_go_one_way_and_flower_stays_at_the_edge(repository: Path) -> None:
    # A process of its own: import-linter turns off every logger it finds.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    checked = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("package", ["client", "common", "server", "simulations"])
def test_packages_are_typed(repository: Path, package: str) -> None:
    assert (repository / package / "py.typed").is_file()


def test_modules_are_named_by_their_subject(package_files: list[Path]) -> None:
    assert not [str(path) for path in package_files if VAGUE & {path.stem, path.parent.name}]


def test_nothing_reads_pickles(syntax: dict[str, ast.Module]) -> None:
    offences = [f"{file}:{line} {what}" for file, tree in syntax.items() for line, what in _pickles(tree)]
    assert not offences


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
        "pd.read_pickle('x')",
    ],
)
def test_a_pickle_would_be_seen(source: str) -> None:
    assert _pickles(ast.parse(source))


def test_only_command_lines_print(syntax: dict[str, ast.Module]) -> None:
    offences = [
        f"{file}:{node.lineno}"
        for file, tree in syntax.items()
        if not file.endswith("/cli.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not offences


def _pickles(tree: ast.Module) -> list[tuple[int, str]]:
    """Return every use of an unsafe reader: (line, what)."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, name.name) for name in names if _is_pickle(name.name)]
            case ast.ImportFrom(module=str(module), names=names):
                loads = module == "torch" and any(name.name == "load" for name in names)
                found += [(node.lineno, module)] if loads or _is_pickle(module) else []
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                found.append((node.lineno, f"torch.{node.attr}"))
            case ast.Attribute(attr="read_pickle" | "to_pickle"):
                found.append((node.lineno, node.attr))
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append((node.lineno, "allow_pickle"))
    return found


def _is_pickle(module: str) -> bool:
    return module.partition(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
