"""The reports of a site beside its images: redacted, aligned, and '' where there are none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.dataset import SiteData, load_site_data
from client.data.source import read_source
from client.data.texts import read_texts
from client.site import SiteConfig, load_site
from client.text.redaction import survivors
from common.errors import TableError
from common.sections import DataConfig
from simulations.phantom.site import write_site

Make = Callable[..., SiteConfig]
LABELS = '[labels]\nedema = "E"\n'
SIZE = 16


def rows(count: int = 20) -> dict[str, list[Any]]:
    return {
        "patient": [f"p{i}" for i in range(count)],
        "study": [f"s{i}" for i in range(count)],
        "view": ["PA"] * count,
        "E": [i % 2 for i in range(count)],
        "indication": [f"Cough, week {i}." for i in range(count)],
        "findings": ["No effusion. Rotated to the left." if i % 2 else "Edema." for i in range(count)],
    }


def load(site: SiteConfig, **plan: Any) -> SiteData:
    return load_site_data(site, DataConfig(findings=("edema",), image_size=SIZE, **plan))


def test_texts_stand_beside_their_rows_however_the_rows_are_drawn(make_site: Make) -> None:
    table = rows()
    table["findings"][3] = table["indication"][3] = ""
    table["view"][5] = "L"
    site = make_site(table, LABELS)
    data = load(site, text=True)
    assert len(data.texts) == len(data.pixels) == 19
    assert data.texts[0] == "Cough, week 0."
    assert data.texts[3] == ""
    # the picture says which row it is: the fixture draws 7 i into row i
    for image, text in zip(data.pixels, data.texts, strict=True):
        row = int(image[0, 0]) // 7
        assert text == ("" if row == 3 else f"Cough, week {row}.")
    assert load(site, text=True, fraction=0.5).texts == data.texts


def test_without_a_plan_that_reads_them_no_text_is_read(make_site: Make) -> None:
    assert load(make_site(rows(), LABELS)).texts == ()


@pytest.mark.parametrize(
    ("redaction", "expected"),
    [
        ("none", "Cough, week 1.\nNo effusion. Rotated to the left."),
        ("word", "Cough, week 1.\nNo. Rotated to the left."),
        ("sentence", "Cough, week 1.\nRotated to the left."),
        ("indication", "Cough, week 1."),
    ],
)
def test_the_plan_says_what_is_left_of_a_report(make_site: Make, redaction: str, expected: str) -> None:
    assert load(make_site(rows(), LABELS), text=True, redaction=redaction).texts[1] == expected


def test_the_images_of_a_study_share_its_report(make_site: Make) -> None:
    table = rows(6)
    table["patient"] = ["a", "a", "a", "b", "b", "c"]
    table["study"] = ["1", "1", "2", "1", "", ""]
    table["findings"] = [""] * 6
    table["indication"] = ["Cough.", "", "", "", "", "Fever."]
    site = make_site(table, LABELS)
    paths = np.array([f"images/{i:03d}.png" for i in range(6)])
    # another patient's study of the same number, or one without a number, is not the same study
    assert read_texts(site, paths, "none") == ("Cough.", "Cough.", "", "", "", "Fever.")


def test_a_path_written_another_way_is_the_same_image(make_site: Make) -> None:
    table = rows(3)
    table["path"] = ["./images/000.png", "images//001.png", "images/002.png"]
    site = make_site(table, LABELS, images=False)
    paths = np.array(["images/001.png", "images/000.png", "images/elsewhere.png"])
    assert read_texts(site, paths, "indication") == ("Cough, week 1.", "Cough, week 0.", "")


def test_a_site_without_reports_has_images_alone(make_site: Make, caplog: pytest.LogCaptureFixture) -> None:
    table = {k: v for k, v in rows().items() if k not in ("indication", "findings")}
    with caplog.at_level(logging.WARNING):
        assert load(make_site(table, LABELS), text=True).texts == ("",) * 20
    assert "has no column of reports" in caplog.text


def test_a_column_of_reports_that_site_toml_names_must_be_there(make_site: Make) -> None:
    site = make_site(rows(), LABELS + '[columns]\nreport = "befund"\n')
    with pytest.raises(TableError, match=r"column 'befund' \(columns\.report\)"):
        load(site, text=True)


def test_no_text_of_a_report_is_in_the_log(make_site: Make, caplog: pytest.LogCaptureFixture) -> None:
    table = rows()
    table["indication"] = ["Jane Doe, MRN-77231"] * 20
    with caplog.at_level(logging.DEBUG):
        load(make_site(table, LABELS), text=True, redaction="none")
    assert "20 of 20 images with text" in caplog.text
    assert "Doe" not in caplog.text
    assert "77231" not in caplog.text


def test_nothing_redaction_takes_out_is_left_in_a_phantom_site(tmp_path: Path) -> None:
    site = load_site(write_site(tmp_path, name="north", n=60, seed=3, size=32, scanner="old_film"))
    plan = DataConfig(findings=("edema",), image_size=32, text=True, redaction="word")
    texts = load_site_data(site, plan).texts
    assert len(texts) == 60
    assert all(texts)
    assert [text for text in texts if survivors(text.partition("\n")[2])] == []
    raw = load_site_data(site, plan.model_copy(update={"redaction": "none"})).texts
    assert all(len(less) < len(more) for less, more in zip(texts, raw, strict=True))
    assert any("effusion" in text for text in raw)


def test_the_indiana_layout_brings_reports(tmp_path: Path) -> None:
    reports = tmp_path / "ecgen-radiology"
    reports.mkdir()
    (reports / "1.xml").write_text(XML)
    site_file = tmp_path / "site.toml"
    site_file.write_text('name = "indiana"\n[data]\nlayout = "openi"\nroot = "."\nviews = "any"\n')
    site = load_site(site_file)
    paths = read_source(site)[site.columns.path]
    texts = read_texts(site, paths, "none")
    assert len(texts) == 2
    assert all("Dyspnea." in text and "No effusion." in text for text in texts)
    assert read_texts(site, paths, "indication") == ("Dyspnea.",) * 2


XML = """<?xml version="1.0"?>
<eCitation><pmcId id="1"/><uId id="CXR1"/>
<MedlineCitation><Article><Abstract>
<AbstractText Label="INDICATION">Dyspnea.</AbstractText>
<AbstractText Label="FINDINGS">No effusion.</AbstractText>
<AbstractText Label="IMPRESSION">Normal chest.</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>normal</major></MeSH>
<parentImage id="CXR1_1_IM-0001-3001"><caption/></parentImage>
<parentImage id="CXR1_1_IM-0001-4001"><caption/></parentImage>
</eCitation>
"""
