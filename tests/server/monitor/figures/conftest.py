"""Runs to draw: one that was made up, large or small, one of a single site, one that has only begun."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from server.facts.runs import Run
from server.ledger import Ledger
from simulations.benchmarks.large_ledger import write_large_ledger

Figure = dict[str, Any]

ROOT = Path(__file__).parents[4] / "server"
TOKENS = {
    *re.findall(r"--([a-z0-9-]+):", (ROOT / "templates" / "report.css").read_text()),
    *re.findall(r"--([a-z0-9-]+):", (ROOT / "monitor" / "static" / "monitor.css").read_text()),
}
"""The variables of the style sheets that the page has."""


def _coloured(value: Any) -> Any:
    """Put in real colours as the page's script does; a token that no style sheet has fails."""
    if isinstance(value, dict):
        return {key: _coloured(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_coloured(each) for each in value]
    if not isinstance(value, str):
        return value
    if value == "var:font":
        return "sans-serif"
    if value.startswith("var:"):
        assert value[4:] in TOKENS, value
        return "#123456"
    if value.startswith("scale:"):
        assert f"scale-{value[6:]}" in TOKENS, value
        return [[0, "#000000"], [0.5, "#777777"], [1, "#ffffff"]]
    assert not re.fullmatch(r"#[0-9a-fA-F]{3,8}", value), f"a colour that no theme can change: {value}"
    return value


@pytest.fixture(scope="session")
def validated() -> Callable[[Figure], go.Figure]:
    """Hold a figure against Plotly's own schema: an unknown or unfit property raises."""

    def check(figure: Figure) -> go.Figure:
        assert figure.keys() == {"data", "layout", "alt", "caption"}
        made = copy.deepcopy(figure)
        return go.Figure(_coloured(made["data"]), _coloured(made["layout"]))

    return check


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Run]]:
    """Open a finished run that never took place, of so many sites, rounds and findings."""
    runs: dict[tuple[int, ...], Run] = {}

    def make(sites: int = 6, rounds: int = 12, findings: int = 4) -> Run:
        key = (sites, rounds, findings)
        if key not in runs:
            folder = tmp_path_factory.mktemp("figures") / f"run-{sites}-{rounds}"
            write_large_ledger(folder, rounds=rounds, sites=sites, findings=findings, seed=1)
            runs[key] = Run(folder.name, folder)
        return runs[key]

    yield make
    for run in runs.values():
        run.close()


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Run]:
    """A run in which nothing has happened yet."""
    Ledger(tmp_path / "ledger.sqlite").close()
    run = Run("begun", tmp_path)
    yield run
    run.close()
