"""Natural sites of real radiographs with a real pretrained base, where the data is there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.cli import app

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(300)]


def test_severe_course_and_partial_labels_over_natural_sites(real_data: Path, tmp_path: Path) -> None:
    arguments = [
        "run", "simulations/experiments/real_sites.toml", "--set", f"data.root={real_data}",
        "--set", "rounds.count=2", "--set", "pet.scope=last-1",
        "--set", "evaluate.replicates=100", "--out", str(tmp_path / "run"), "--arms", "federated",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    reports = {
        name: json.loads((tmp_path / "run" / name / "report.json").read_text())
        for name in ("real_severe", "real_severe_ap", "real_partial")
    }
    severe, ap, partial = reports.values()
    assert set(severe["sites"]) == {"covid_italy", "covid_northamerica", "covid_uk", "hannover_de"}
    assert ap["sites"]["hannover_de"]["test_studies"] < severe["sites"]["hannover_de"]["test_studies"]
    assert severe["base_digest"] == ap["base_digest"]
    assert len(partial["sites"]) == 6
    owned = {site: set(facts["findings"]) for site, facts in partial["sites"].items()}
    assert owned["guangzhou_cn"] == {"bacterial_pneumonia"}
    assert owned["covid_uk"] == {"severe"} and len(owned["nih64_us"]) == 5
    for report in reports.values():
        assert all(round_["status"] == "committed" for round_ in report["rounds"])
        thumbnail = report["thumbnail_baseline"]
        assert set(thumbnail) == set(report["sites"])
    # Hannover's task is learnable (a frozen DINOv2 reaches about 0.8): far from chance, not a goal.
    auroc = severe["arms"]["federated"]["sites"]["hannover_de"]["findings"]["severe"]["auroc"]
    assert math.isfinite(auroc) and auroc > 0.65
    identifiers = ["mhh_", "images/"]
    for name in reports:
        page = (tmp_path / "run" / name / "report.html").read_text()
        assert not any(word in page for word in identifiers)
