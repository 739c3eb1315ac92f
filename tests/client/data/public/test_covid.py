"""The COVID-19 image data collection: diagnoses, outcomes, laboratory values, and real rows of it."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from client.data.public import covid
from common.errors import TableError

HEADER = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,"
    "needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,"
    "lymphocyte_count,view,modality,date,location,folder,filename,doi,url,license,clinical_notes,other_notes,"
)


@pytest.fixture(scope="session")
def writer(repository: Path) -> ModuleType:
    """``tests/e2e/covid_layout.py`` as a module."""
    spec = importlib.util.spec_from_file_location("covid_layout", repository / "tests/e2e/covid_layout.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def row():
    """Make a row in the published order from the columns named; the rest is empty."""

    def make(header: str = HEADER, **cells: object) -> list[object]:
        filled = {
            "patientid": 2,
            "modality": "X-ray",
            "folder": "images",
            "filename": "a.jpg",
            "view": "PA",
        } | cells
        return [filled.get(name, "") for name in header.split(",")]

    return make


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"finding": "Pneumonia/Viral/COVID-19"}, "1,0,1,0,1"),
        ({"finding": "Pneumonia/Viral/SARS"}, "1,0,1,0,0"),
        ({"finding": "Pneumonia/Bacterial/Legionella"}, "1,1,0,0,0"),
        ({"finding": "Pneumonia/Fungal/Pneumocystis"}, "1,0,0,0,0"),
        ({"finding": "Pneumonia"}, "1,,,0,"),
        ({"finding": "Pneumonia", "RT_PCR_positive": "N"}, "1,,,0,0"),
        ({"finding": "Tuberculosis"}, "0,0,0,1,0"),
        ({"finding": "No Finding"}, "0,0,0,0,0"),
        ({"finding": "No Finding", "RT_PCR_positive": "Y"}, "0,0,0,0,1"),
        ({"finding": "Unknown", "RT_PCR_positive": "Unclear"}, ",,,,"),
        ({"finding": "todo"}, ",,,,"),
        ({}, ",,,,"),
    ],
)
def test_a_diagnosis_is_a_path_down_the_hierarchy(write, row, cells, expected: str) -> None:
    columns = covid.read(write("metadata.csv", HEADER, row(**cells)))
    names = ("pneumonia", "bacterial_pneumonia", "viral_pneumonia", "tuberculosis", "covid")
    assert ",".join(columns[name][0] for name in names) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"survival": "Y", "went_icu": "N", "intubated": "N"}, "0,0,0,0"),
        ({"survival": "N"}, "1,,,1"),
        ({"went_icu": "Y", "survival": "Y"}, "0,1,,1"),
        ({"went_icu": "N"}, ",0,,0"),
        ({"in_icu": "Y"}, ",1,,1"),
        # Not in intensive care yet says nothing of what follows.
        ({"in_icu": "N"}, ",,,"),
        ({"intubation_present": "Y", "intubated": "N"}, ",,1,1"),
        ({}, ",,,"),
    ],
)
def test_an_outcome_is_absent_only_where_it_is_stated(write, row, cells, expected: str) -> None:
    columns = covid.read(write("metadata.csv", HEADER, row(**cells)))
    assert ",".join(columns[name][0] for name in ("mortality", "icu", "intubated", "severe")) == expected


def test_values_notes_and_views_are_read(write, row) -> None:
    full = row(
        offset=3, sex="M", age=65, temperature="38.6", pO2_saturation=97, leukocyte_count=7.4,
        lymphocyte_count="0.9", needed_supplemental_O2="Y", view="AP Supine", clinical_notes="Cough, fever",
    )  # fmt: skip
    columns = covid.read(write("metadata.csv", HEADER, full, row(filename="b.jpg")))
    told = {
        "path": "images/a.jpg", "patient": "2", "study": "2/3", "view": "AP SUPINE", "age": "65", "sex": "M",
        "male": "1", "offset": "3", "temperature": "38.6", "oxygen_saturation": "97", "leukocytes": "7.4",
        "lymphocytes": "0.9", "neutrophils": "", "supplemental_oxygen": "1", "report": "Cough, fever",
    }  # fmt: skip
    assert {name: columns[name][0] for name in told} == told
    # Without a day, each image is an examination of its own.
    assert columns["study"][1] == "images/b.jpg"
    assert columns["male"][1] == ""


def test_slices_are_no_radiographs(write, row) -> None:
    rows = [row(modality="CT", view="Axial", folder="volumes"), row(filename="b.jpg")]
    assert covid.read(write("metadata.csv", HEADER, *rows))["path"].tolist() == ["images/b.jpg"]


def test_a_column_called_like_a_clinical_variable_is_read(write, row) -> None:
    header = HEADER.removesuffix(",") + ",CRP,D-dimer,shoe size"
    rows = [row(header, **{"CRP": 44, "D-dimer": 2.9, "shoe size": 43, "filename": "a.jpg"})]
    columns = covid.read(write("metadata.csv", header, *rows))
    assert columns["crp"].tolist() == ["44"]
    assert columns["d_dimer"].tolist() == ["2.9"]
    assert "shoe size" not in columns


def test_another_header_is_refused(write) -> None:
    root = write("metadata.csv", "Patientid,offset,sex,age,finding,survival,view", "PLANTED,,,,,,")
    with pytest.raises(TableError, match="lacks 'patientid', 'intubated', 'went_icu'"):
        covid.read(root)


MANIFEST = {
    "mortality": "out_survived",
    "icu": "out_icu",
    "intubated": "out_intubated",
    "severe": "out_severe",
    "covid": "lab_covid",
    "pneumonia": "lab_pneumonia",
    "supplemental_oxygen": "out_supplemental_o2",
}


@pytest.mark.real_data
def test_real_sites_in_this_layout_read_as_their_manifest_says(
    writer: ModuleType, real_data: Path, tmp_path: Path
) -> None:
    out = writer.write_covid_layout(real_data, tmp_path / "sites")
    with (real_data / "real_sites" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        manifest = list(csv.DictReader(file))
    counts = {}
    unlike: dict[str, int] = {}
    for site in writer.SITES:
        rows = [image for image in manifest if image["site"] == site]
        columns = covid.read(out / site)
        assert all((out / site / path).is_file() for path in columns["path"].tolist())
        assert columns["patient"].tolist() == [image["patient_id"] for image in rows]
        for name, source in MANIFEST.items():
            expected = [image[source] for image in rows]
            if name == "mortality":
                expected = [{"1": "0", "0": "1", "": ""}[cell] for cell in expected]
            unlike[name] = unlike.get(name, 0) + int((columns[name] != np.array(expected)).sum())
        counts[site] = (len(rows), len(set(columns["patient"].tolist())))
    assert counts == {
        "hannover_de": (243, 71),
        "covid_italy": (187, 138),
        "covid_uk": (97, 44),
        "covid_northamerica": (78, 44),
    }
    # Three images with a tube in place whose `intubated` is empty; three known only not to be
    # intubated, which the manifest leaves open and our rule for `severe` calls 0.
    assert {name: count for name, count in unlike.items() if count} == {"intubated": 3, "severe": 3}
    hannover = covid.read(out / "hannover_de")
    filled = {
        name: int((hannover[name] != "").sum()) for name in ("crp", "ldh", "oxygen_pressure", "lymphocytes")
    }
    assert filled == {"crp": 179, "ldh": 133, "oxygen_pressure": 174, "lymphocytes": 104}


@pytest.mark.real_data
def test_the_layout_is_written_from_the_command_line(
    repository: Path, real_data: Path, tmp_path: Path
) -> None:
    script = [sys.executable, str(repository / "tests/e2e/covid_layout.py")]
    subprocess.run([*script, str(real_data / "real_sites"), str(tmp_path)], check=True, timeout=60)
    subprocess.run([*script, str(real_data), str(tmp_path)], check=True, timeout=60)
    header = (tmp_path / "covid_uk" / "metadata.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.startswith(HEADER.removesuffix(","))
    assert subprocess.run(script, capture_output=True, timeout=60).returncode == 1
