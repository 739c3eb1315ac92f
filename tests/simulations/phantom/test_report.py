"""Reports say what is there, deny what is not, and give nothing away in the indication."""

import re

import numpy as np
import pytest

from simulations.phantom.cases import FINDINGS, sample_cases
from simulations.phantom.report import write_reports

WORDS = {
    "cardiomegaly": r"cardiomegaly|cardiac silhouette|heart size",
    "effusion": r"effusion",
    "pneumothorax": r"pneumothorax",
    "consolidation": r"consolidation",
    "nodule": r"nodule",
    "edema": r"edema",
    "atelectasis": r"atelectasis",
}
DENIAL = re.compile(r"\b(no|not|wihtout|without|n[or]+mal|nomral)\b", re.IGNORECASE)
DIAGNOSES = re.compile(
    "|".join(WORDS.values())
    + r"|enlarged|collapse|oedema|fluid|failure|pneumonia|tube|line\b|pacemaker|drain",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def cases():
    return sample_cases(400, seed=15)


@pytest.fixture(scope="module")
def reports(cases):
    return write_reports(cases)


@pytest.mark.parametrize("finding", WORDS)
def test_present_is_stated_and_absent_denied(cases, reports, finding):
    present = cases.labels[:, FINDINGS.index(finding)] == 1
    denied = 0
    for there, report in zip(present, reports, strict=True):
        about = [
            s for s in re.split(r"(?<=\.)\s+", report.findings) if re.search(WORDS[finding], s, re.IGNORECASE)
        ]
        if there:
            assert any(not DENIAL.search(s) for s in about), report.findings
            assert re.search(WORDS[finding], report.impression, re.IGNORECASE)
        else:
            assert all(DENIAL.search(s) for s in about), report.findings
            assert not re.search(WORDS[finding], report.impression, re.IGNORECASE)
            denied += bool(about)
    assert denied > 0.5 * (~present).sum()


def test_indication_names_age_and_sex_but_no_diagnosis(cases, reports):
    for row, report in enumerate(reports):
        assert str(int(cases.age[row])) in report.indication
        assert not DIAGNOSES.search(report.indication), report.indication


def test_text_varies_and_hedges(reports):
    assert len({r.findings for r in reports}) > 380
    text = " ".join(r.findings for r in reports)
    assert re.search("possible|probable|questionable|suspected", text)
    assert re.search("wihtout|evidnece|nomral|Ther is|chets", text), "some reports have typos"


def test_a_report_depends_on_its_case_only(cases, reports):
    assert write_reports(cases.take(np.array([7, 3]))) == [reports[7], reports[3]]
