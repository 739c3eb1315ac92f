"""Made their own, and taking no part: who got worse is said first, and no surer than the interval."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from common.metrics import Difference
from server.report import render, to_json
from server.report_further import comparison_of, questions
from server.report_personal import personal_part
from server.report_schema import Comparison, Gap, Loss, Report
from server.report_words import headline
from server.report_worse import find_losses

SITES = ("north", "east", "south", "west")


def against(candidate, reference, gaps):
    parts = {site: Gap(difference=gap, interval=(gap - 0.02, gap + 0.02)) for site, gap in gaps.items()}
    mean = sum(gaps.values()) / len(gaps)
    gap = Gap(difference=mean, interval=(mean - 0.01, mean + 0.01))
    return Comparison(candidate=candidate, reference=reference, site_mean=gap, sites=parts)


def loss(candidate, reference, site, gap, finding="macro"):
    return Loss(
        site=site, finding=finding, candidate=candidate, reference=reference, before=0.8, after=0.8 + gap,
        difference=gap, interval=(gap - 0.02, gap + 0.02), certain=gap + 0.02 < 0,
    )  # fmt: skip


@pytest.fixture
def told(make_report, report):
    """North loses by its own version beyond noise, west within it; staying outside costs south."""
    arms = {**report.arms, "personalised": report.arms["federated"], "held-out": report.arms["pooled"]}
    kept = {"kept": True, "steps": 8, "before": 0.7, "after": 0.8}
    sites = {**dict.fromkeys(SITES[:3], kept), "west": {"kept": False, "steps": 8}}
    own = dict(zip(SITES, (-0.05, 0.03, 0.02, -0.01), strict=True))
    out = dict(zip(SITES, (0.04, 0.05, -0.03, 0.06), strict=True))
    return make_report(
        arms=arms,
        personal=personal_part({"adapter": "a" * 64, "method": "ditto", "sites": sites}),
        further=(against("personalised", "federated", own), against("held-out", "local", out)),
        losses=(
            loss("personalised", "federated", "north", -0.05),
            loss("personalised", "federated", "west", -0.01),
            loss("held-out", "local", "south", -0.03),
            loss("held-out", "local", "south", -0.06, "edema"),
        ),
    )


def test_the_head_names_who_got_worse_by_each(told):
    lines = headline(told).details[-2:]
    assert lines[0].startswith("Made their own: 3 of 4 sites kept their own version; mean AUROC −0.003")
    assert "against the federated adapter over 4 sites" in lines[0] and "which includes zero" in lines[0]
    assert lines[0].endswith("1 of 4 sites got worse: north (−0.050); lower within noise: west (−0.010).")
    assert lines[1].startswith(
        "Taking no part, with the others' model: mean AUROC +0.030 against training alone"
    )
    assert "includes zero" not in lines[1] and lines[1].endswith("1 of 4 sites got worse: south (−0.030).")


def test_each_pair_has_its_losers_with_the_sites_before_the_findings(told):
    own, out = questions(told)
    assert (own.candidate, own.reference) == ("personalised", "federated")
    assert [entry.site for entry in own.certain] == ["north"] and [e.site for e in own.noise] == ["west"]
    assert [entry.finding for entry in out.certain] == ["macro", "edema"]
    assert comparison_of(told, "held-out", "federated") is None


def test_the_page_leads_with_them(told):
    page = render(told)
    places = [
        page.index(text) for text in ('id="worse"', "<h3>Made its own", "<h3>Taking no part", 'id="sites"')
    ]
    assert places == sorted(places)
    for text in ("went back", "its own", "A hospital that takes no part", "held-out − local"):
        assert text in page
    assert json.loads(to_json(told))["personal"]["sites"]["west"]["validation_after"] is None


def test_a_report_of_before_reads_and_says_nothing_of_it(report):
    content = json.loads(to_json(report))
    for name in ("further", "losses", "personal", "left_out"):
        del content[name]
    old = Report.model_validate(content)
    assert old == report and questions(old) == []
    page = render(old)
    assert "Made their own" not in page and "takes no part" not in page


def test_a_comparison_of_what_was_not_measured_is_refused(make_report, report):
    with pytest.raises(ValidationError, match="names the arm 'personalised'"):
        make_report(further=(against("personalised", "federated", {"north": 0.1}),))
    arms = {**report.arms, "held-out": report.arms["pooled"].model_copy(update={"sites": {}})}
    with pytest.raises(ValidationError, match="not measured under 'held-out'"):
        make_report(arms=arms, further=(against("held-out", "local", {"north": 0.1}),))


def test_a_loss_is_below_zero_and_as_certain_as_its_interval():
    good = loss("held-out", "local", "north", -0.05).model_dump()
    with pytest.raises(ValidationError, match="contradicts the interval"):
        Loss(**good | {"certain": False})
    with pytest.raises(ValidationError, match="less than 0"):
        Loss(**good | {"difference": 0.01})


def test_losses_are_found_worst_first_where_both_are_defined(report):
    arms = report.arms
    gaps = {
        "north": {
            "macro": Difference(-0.01, (-0.02, 0.01), 0.01),
            "edema": Difference(0.1, (0.0, 0.2), 0.05),
        },
        "east": {"macro": Difference(-0.2, (-0.3, -0.1), 0.05)},
        "nowhere": {"macro": Difference(-0.5, (-0.6, -0.4), 0.05)},
        "west": {"edema": Difference(-0.5, (-0.6, -0.4), 0.05)},
    }
    found = find_losses(arms, "federated", "pooled", gaps)
    assert [(entry.site, entry.finding, entry.certain) for entry in found] == [
        ("east", "macro", True), ("north", "macro", False),
    ]  # fmt: skip
    assert found[0].before == arms["pooled"].sites["east"].macro_auroc
    assert found[0].after == arms["federated"].sites["east"].macro_auroc


def test_without_the_stage_there_is_no_part():
    assert personal_part(None) is None
