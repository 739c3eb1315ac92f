from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.site import load_site
from client.text.studies import one_per_study, probe_modes, read_reports, used_text
from common.errors import ConfigError, TableError
from simulations.phantom.cases import FINDINGS, Cases


def test_images_of_a_study_are_one_report(make_report_site: Callable[..., Path], cases: Cases) -> None:
    reports = read_reports(load_site(make_report_site(rows=50, images=3)))
    assert len(reports) == 150
    studies = one_per_study(reports)
    assert len(studies) == 50
    assert (studies.labels == cases.labels[:50]).all()
    assert studies.findings == FINDINGS


def test_without_studies_the_same_text_of_a_patient_is_one(make_report_site: Callable[..., Path]) -> None:
    reports = read_reports(load_site(make_report_site(rows=50, images=2, study=None)))
    assert len(one_per_study(reports)) == 50


def test_rows_without_patient_or_text_are_left_out(make_report_site: Callable[..., Path]) -> None:
    patients = ["", *(f"p{k}" for k in range(9))]
    texts = ["x", "", *"abcdefgh"]
    site = make_report_site(rows=10, patient=patients, findings=texts, indication=None, impression=None)
    assert len(one_per_study(read_reports(load_site(site)))) == 8


def test_filters_of_the_site_hold(make_report_site: Callable[..., Path]) -> None:
    site = make_report_site(rows=10, ward=["a", "b"] * 5, toml='[filter]\nward = "a"')
    assert read_reports(load_site(site)).path.tolist() == [f"images/{k:04d}.png" for k in range(0, 10, 2)]


def test_columns_are_those_that_exist_or_are_wanted(make_report_site: Callable[..., Path]) -> None:
    config = load_site(make_report_site(rows=3))
    assert [field for field, _ in read_reports(config).texts[0]] == ["indication", "findings", "impression"]
    assert [field for field, _ in read_reports(config, ["impression"]).texts[0]] == ["impression"]
    with pytest.raises(ConfigError, match="not a field of a report"):
        read_reports(config, ["impresion"])
    with pytest.raises(TableError, match=r"columns\.report"):
        read_reports(config, ["report"])


def test_a_named_column_must_exist(make_report_site: Callable[..., Path]) -> None:
    site = make_report_site(rows=3, toml='[columns]\nreport = "narrative"')
    with pytest.raises(TableError, match="narrative"):
        read_reports(load_site(site))


def test_a_site_without_text_says_so(make_report_site: Callable[..., Path]) -> None:
    site = make_report_site(rows=3, indication=None, findings=None, impression=None)
    with pytest.raises(TableError, match="no column of reports"):
        read_reports(load_site(site))


def test_a_field_is_not_taken_twice_from_report_and_column() -> None:
    report = ("report", "INDICATION: Cough.\nFINDINGS: Edema.")
    text, log = used_text((report, ("indication", "Cough.")), "none")
    assert text == report[1] and log == []
    assert used_text((report, ("indication", "Cough.")), "indication")[0] == "INDICATION: Cough."
    bare = ("report", "INDICATION:\nFINDINGS: Edema.")
    text, log = used_text((bare, ("indication", "Known edema, cough.")), "indication")
    assert text == "Known, cough."
    assert {field for field, _ in log} == {"report", "indication"}


def test_modes_are_probed_on_the_same_studies(make_report_site: Callable[..., Path], cases: Cases) -> None:
    reports = read_reports(load_site(make_report_site(rows=300, images=2)))
    results = dict(probe_modes(reports, ("none", "indication"), seed=0))
    assert [result.studies for result in results.values()] == [300, 300]
    assert results["none"].macro_auroc > 0.95 > 0.7 > results["indication"].macro_auroc
    assert np.isfinite(results["indication"].macro_interval).all()


def test_a_long_report_is_whole(make_report_site: Callable[..., Path]) -> None:
    long = "The bony thorax is intact. " * 100 + "Small effusion."
    site = make_report_site(rows=3, findings=[long, "x", "y"], indication=None, impression=None)
    assert read_reports(load_site(site)).texts[0] == (("findings", long),)
