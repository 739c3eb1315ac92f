"""Outcome and clinical variables of real radiographs, through the reader of the COVID-19 image collection."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from client.data.table import read_studies
from client.site import load_site
from simulations.cli import app

pytestmark = [pytest.mark.real_data, pytest.mark.timeout(300)]
SITES = {"covid_italy", "covid_northamerica", "covid_uk", "hannover_de"}


@pytest.fixture(scope="module")
def layout(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("covid_layout", Path(__file__).with_name("covid_layout.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_covid_layout(real_data, tmp_path_factory.mktemp("covid"))


def test_an_outcome_and_clinical_variables_by_natural_sites(
    real_data: Path, layout: Path, tmp_path: Path
) -> None:
    weights = real_data / "weights" / "vit_small_patch14_dinov2.safetensors"
    out = tmp_path / "run"
    arguments = [
        "run", "covid_outcome", "--set", f"data.root={layout}", "--set", f"model.weights={weights}",
        "--set", "rounds.count=3", "--set", "evaluate.replicates=50", "--arms", "federated",
        "--out", str(out),
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert set(report["sites"]) == SITES
    assert all(round_["status"] == "committed" for round_ in report["rounds"])
    assert all(site["findings"] == ["severe"] for site in report["sites"].values())
    clinical = load_file(out / "release" / "clinical.safetensors")["clinical.weight"]
    assert clinical.shape == (1, 18)
    assert clinical.abs().sum() > 0
    table = read_studies(load_site(out / "sites" / "hannover_de" / "site.toml"))
    known = dict(zip(table.variables, (table.clinical == table.clinical).sum(axis=0).tolist(), strict=True))
    assert known["crp"] > 0 and known["age"] == 0  # laboratory values but no ages at this site
    page = (out / "report.html").read_text()
    assert "mhh_" not in page and "cohen_" not in page
