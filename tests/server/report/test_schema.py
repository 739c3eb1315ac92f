"""report.json keeps its promises, and docs/report-schema.md says what the models say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import server.report_schema as schema
from server.report import to_json
from server.report_schema import SCHEMA, Arm, Report, WorseSite

DOC = (Path(__file__).parents[3] / "docs" / "report-schema.md").read_text(encoding="utf-8")
PARTS = [
    part
    for part in vars(schema).values()
    if isinstance(part, type) and issubclass(part, BaseModel) and part.model_fields
]
EMPTY = Arm(description="", local_steps={}, site_mean_auroc=None, interval=None, worst_site=None, sites={})


def row(name: str, description: str) -> str:
    meaning = " ".join(description.split()).replace("|", "\\|")
    return rf"\| `{re.escape(name)}` \| [^\n]* \| {re.escape(meaning)} \|"


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_page_documents_every_field_in_the_models_own_words(part):
    section = DOC[DOC.index(part.__doc__.strip()) :].split("\n## ")[0]
    for name, field in part.model_fields.items():
        assert re.search(row(field.alias or name, field.description), section), name
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(documented) == sorted(f.alias or n for n, f in part.model_fields.items())


def test_the_page_names_the_version_the_model_writes(report):
    assert json.loads(to_json(report))["schema"] == SCHEMA
    assert f"`{SCHEMA}`" in DOC


def test_reading_what_was_written_gives_the_report(report):
    text = to_json(report)
    again = Report.model_validate_json(text)
    assert again == report
    assert to_json(again) == text
    assert list(again.arms) == ["local", "federated", "pooled"]


def test_another_version_or_an_unknown_field_is_refused(report):
    content = json.loads(to_json(report))
    with pytest.raises(ValidationError, match=r"fedcxr\.report/1"):
        Report.model_validate(content | {"schema": "fedcxr.report/2"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        Report.model_validate(content | {"surprise": 1})


def test_arms_and_worse_sites_come_in_order_whatever_order_they_had(make_report, report):
    shuffled = make_report(
        arms={"personalised": EMPTY, **dict(reversed(report.arms.items())), "again": EMPTY},
        worse_sites=report.worse_sites[::-1],
    )
    assert list(shuffled.arms) == ["local", "federated", "pooled", "again", "personalised"]
    assert shuffled.worse_sites == report.worse_sites


def test_a_certain_flag_must_agree_with_its_interval():
    entry = {
        "site": "south", "finding": "macro", "local": 0.8, "federated": 0.75, "difference": -0.05,
        "interval": (-0.09, 0.01), "certain": True,
    }  # fmt: skip
    with pytest.raises(ValidationError, match="contradicts the interval"):
        WorseSite(**entry)
    with pytest.raises(ValidationError, match="less than 0"):
        WorseSite(**entry | {"certain": False, "difference": 0.01})
    with pytest.raises(ValidationError, match="low <= high"):
        WorseSite(**entry | {"certain": False, "interval": (0.2, 0.1)})


def test_a_comparison_must_be_of_what_was_measured(make_report, report):
    with pytest.raises(ValidationError, match="'local'"):
        make_report(arms={"federated": report.arms["federated"]})
    with pytest.raises(ValidationError, match="not measured under"):
        make_report(arms={**report.arms, "local": EMPTY})


def test_infinity_is_refused(report):
    text = to_json(report).replace('"seconds": ', '"seconds": 1e999, "x": ', 1)
    with pytest.raises(ValidationError):
        Report.model_validate_json(text)
