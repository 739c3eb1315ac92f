"""What the report says of all sites' studies together, and of ways to calibrate."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit

from common.metrics import evaluate_scores
from server.report import render
from server.report_pooled import PooledArea, calibration_rows, pooled_part

FINDINGS = ("edema", "effusion", "hernia")


@pytest.fixture(scope="module")
def results():
    """Two arms at two sites; nobody may tell of hernia."""
    generator = np.random.default_rng(0)
    found = {"federated": {}, "local": {}}
    for site in ("north", "east"):
        labels = (generator.random((400, 3)) < [0.3, 0.2, 0.01]).astype(float)
        for arm, strength in (("federated", 2.0), ("local", 0.8)):
            scores = expit(generator.normal(size=labels.shape) + strength * labels - 1).astype(np.float32)
            found[arm][site] = evaluate_scores(
                scores, labels, range(400), FINDINGS,
                replicates=20, generator=generator, min_cell=11, histograms=True,
            )  # fmt: skip
    return found


def test_each_arm_has_its_findings_and_their_mean(results):
    part = pooled_part(results, FINDINGS)
    assert [*part] == ["federated", "local"]
    for arm in part.values():
        assert [*arm.findings] == ["edema", "effusion"]
        for name in ("auroc", "low", "high"):
            mean = np.mean([getattr(area, name) for area in arm.findings.values()])
            assert getattr(arm.macro, name) == pytest.approx(mean)
        assert arm.findings["edema"].sites == ("east", "north")
    assert part["federated"].macro.low > part["local"].macro.auroc
    assert pooled_part({}, FINDINGS) is None
    with pytest.raises(ValidationError, match="not within"):
        PooledArea(auroc=0.9, low=0.1, high=0.8)


def test_the_page_shows_the_bound_and_what_it_is(make_report, results):
    page = render(make_report(pooled=pooled_part(results, FINDINGS)))
    part = pooled_part(results, FINDINGS)["federated"]
    section = page[page.index("pooled-studies") :]
    assert "not an interval of chance" in section
    assert f"{part.findings['edema'].auroc:.3f}" in section and f"{part.macro.low:.3f}" in section
    assert "pooled-studies" not in render(make_report(pooled=None))


def test_ways_to_calibrate_stand_side_by_side(make_report, report):
    arm = report.arms["federated"]
    sites = {
        site: result.model_copy(update={"pooled_ece": 0.01 * n})
        for n, (site, result) in enumerate(arm.sites.items(), start=1)
    }
    other = arm.model_copy(update={"sites": sites})
    several = make_report(arms={**report.arms, "temperature": other, "calibrated": other})
    rows = calibration_rows(several)
    assert [row.words.split()[0] for row in rows] == ["as", "one", "slope"]
    weights = [result.studies for result in sites.values()]
    expected = np.average([0.01 * n for n in range(1, len(sites) + 1)], weights=weights)
    assert rows[1].ece == pytest.approx(expected)
    assert (rows[1].worst, rows[1].site) == (pytest.approx(0.01 * len(sites)), [*sites][-1])
    assert "one temperature for all findings" in render(several)
    assert calibration_rows(report) == []
