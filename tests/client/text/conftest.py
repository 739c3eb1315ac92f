"""Reports whose truth is known: phantoms, and the Indiana archive where torchxrayvision is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulations.phantom.cases import FINDINGS, Cases, sample_cases
from simulations.phantom.report import Report, write_reports


@pytest.fixture(scope="session")
def cases() -> Cases:
    return sample_cases(600, seed=21)


@pytest.fixture(scope="session")
def reports(cases: Cases) -> list[Report]:
    return write_reports(cases)


@pytest.fixture(scope="session")
def whole() -> Callable[[Report], str]:
    """Lay a report out as one text with headings."""
    return lambda r: f"INDICATION: {r.indication}\nFINDINGS: {r.findings}\nIMPRESSION: {r.impression}"


@pytest.fixture
def make_report_site(tmp_path: Path, cases: Cases, reports: list[Report]) -> Callable[..., Path]:
    """Write a site of phantom reports in separate columns; returns its site.toml.

    ``images`` repeats every row as the images of one study. Keyword arguments replace columns.
    """

    def make(toml: str = "", rows: int = 600, images: int = 1, **columns: object) -> Path:
        at = np.repeat(np.arange(rows), images)
        table: dict[str, object] = {
            "path": [f"images/{i:04d}.png" for i in range(len(at))],
            "patient": [f"MRN-{cases.patient[row]:05d}" for row in at],
            "study": [f"study-{row}" for row in at],
            "indication": [reports[row].indication for row in at],
            "findings": [reports[row].findings for row in at],
            "impression": [reports[row].impression for row in at],
        }
        table |= {f"label_{name}": cases.labels[at, j] for j, name in enumerate(FINDINGS)} | columns
        pd.DataFrame({k: v for k, v in table.items() if v is not None}).to_csv(
            tmp_path / "studies.csv", index=False
        )
        labels = "\n".join(f'{name} = "label_{name}"' for name in FINDINGS)
        site = tmp_path / "site.toml"
        site.write_text(f'name = "north"\n[data]\ntable = "studies.csv"\n[labels]\n{labels}\n{toml}\n')
        return site

    return make


@pytest.fixture(scope="session")
def indiana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site.toml over the Indiana reports (CC BY-NC-ND), read where torchxrayvision put them."""
    spec = importlib.util.find_spec("torchxrayvision")
    folders = [Path(folder) / "data" for folder in (spec.submodule_search_locations or [])] if spec else []
    found = [folder for folder in folders if (folder / "NLMCXR_reports.tgz").is_file()]
    if not found:
        pytest.skip("torchxrayvision with its NLMCXR_reports.tgz is not installed")
    site = tmp_path_factory.mktemp("indiana") / "site.toml"
    site.write_text(f'name = "indiana"\n[data]\nlayout = "openi"\nroot = "{found[0]}"\n')
    return site
