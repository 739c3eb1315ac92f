"""A folder of DICOM files with a table of labels beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.data.assess import assess_site
from client.data.folder import INDEX_SIZE, walk
from client.data.table import read_studies
from client.site import SiteConfig, load_site
from common.errors import ConfigError, TableError

DicomFile = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path, make_dicom: DicomFile) -> Callable[..., SiteConfig]:
    """Three DICOM files of two patients in export/, and a table of labels."""

    def make(table: str, toml: str = "", join: str = "accession") -> SiteConfig:
        (tmp_path / "export" / "a").mkdir(parents=True, exist_ok=True)
        for i, patient in enumerate(["MRN-1", "MRN-1", "MRN-2"]):
            pixels = np.random.default_rng(i).integers(0, 4096, (24, 20)).astype(np.uint16)
            make_dicom(
                pixels,
                f"export/a/{i}.dcm",
                PatientID=patient,
                AccessionNumber=f"ACC{i}",
                StudyInstanceUID=f"1.2.{i}",
                ViewPosition=("PA", "AP", "LL")[i],
                PatientAge="061Y",
                PatientSex="F",
            )
        (tmp_path / "labels.csv").write_text(table)
        (tmp_path / "site.toml").write_text(
            'name = "south"\n[data]\nlayout = "folder"\nroot = "export"\ntable = "labels.csv"\n'
            f'join = "{join}"\n' + toml
        )
        return load_site(tmp_path / "site.toml")

    return make


TOML = '[columns]\naccession = "ACC"\n[labels]\nedema = "E"\n'


def test_headers_say_whose_and_the_table_what(make_folder: Callable[..., SiteConfig]) -> None:
    table = read_studies(make_folder("ACC,E\nACC1,1\nACC0,0\nACC9,1\n", TOML))
    assert table.path.tolist() == ["a/0.dcm", "a/1.dcm", "a/2.dcm"]
    assert table.patient.tolist() == ["MRN-1", "MRN-1", "MRN-2"]
    assert table.study.tolist() == ["1.2.0", "1.2.1", "1.2.2"]
    assert table.code.tolist() == ["", "", "view"]
    assert table.age.tolist() == [61, 61, 61]
    np.testing.assert_array_equal(table.labels[:, 0], [0, 1, np.nan])


@pytest.mark.parametrize(
    ("join", "columns", "keys"),
    [
        ("patient", "", ["MRN-1", "MRN-2"]),
        ("study", 'study = "StudyInstanceUID"\n', ["1.2.0", "1.2.2"]),
        ("file", "", ["0.dcm", "2.dcm"]),
    ],
)
def test_what_joins_them(
    make_folder: Callable[..., SiteConfig], join: str, columns: str, keys: list[str]
) -> None:
    name = {"study": "StudyInstanceUID"}.get(join, join)
    toml = f'[columns]\n{columns}[labels]\nedema = "E"\n'
    table = read_studies(make_folder(f"{name},E\n{keys[0]},1\n{keys[1]},0\n", toml, join))
    first = [1, 1, 0] if join == "patient" else [1, np.nan, 0]
    np.testing.assert_array_equal(table.labels[:, 0], first)


def test_rows_that_contradict_each_other(make_folder: Callable[..., SiteConfig]) -> None:
    table = read_studies(make_folder("ACC,E\nACC0,1\nACC0,0\nACC1,1\nACC1,1\n", TOML))
    assert table.code.tolist() == ["conflict", "", "view"]
    assert table.labels[1, 0] == 1


def test_the_table_is_believed_where_both_know(make_folder: Callable[..., SiteConfig]) -> None:
    site = make_folder("ACC,E,view,patient\nACC0,1,AP,\nACC2,0,PA,X\n", TOML)
    table = read_studies(site)
    assert table.view.tolist() == ["AP", "AP", "PA"]
    assert table.patient.tolist() == ["MRN-1", "MRN-1", "X"]


def test_a_key_the_table_lacks(make_folder: Callable[..., SiteConfig]) -> None:
    with pytest.raises(TableError, match=r"'ACC' \(columns\.accession\) is not in labels\.csv"):
        read_studies(make_folder("Accession,E\nACC0,1\n", TOML))


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "a"\n[data]\nlayout = "folder"\nviews = "any"\n')
    with pytest.raises(TableError, match="holds no image file"):
        read_studies(load_site(tmp_path / "site.toml"))


def test_what_is_walked(tmp_path: Path) -> None:
    for name in [
        "b/IM1",
        "b/.hidden",
        "a.png",
        ".git/x.png",
        "notes.txt",
        "DICOMDIR",
        "cache/1.u8",
        "b/c/i.DCM",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(walk(tmp_path, (tmp_path / "cache",))) == ["a.png", "b/IM1", "b/c/i.DCM"]


@pytest.mark.parametrize("data", ["", 'layout = "nih"\ntable = "x.csv"\n'])
def test_a_table_where_one_is_read(tmp_path: Path, data: str) -> None:
    (tmp_path / "site.toml").write_text(f'name = "a"\n[data]\n{data}')
    with pytest.raises(ConfigError, match=r"data\.table"):
        load_site(tmp_path / "site.toml")


def test_age_and_sex_of_the_headers_are_clinical_variables(make_folder: Callable[..., SiteConfig]) -> None:
    site = make_folder("ACC,E,age\nACC0,1,\nACC1,0,45\nACC2,1,\n", TOML)
    assessed = assess_site(site, None, None, 16)
    assert assessed.table.variables == ("age", "male")
    np.testing.assert_array_equal(assessed.table.clinical[:2], [[61, 0], [45, 0]])


def test_a_link_that_leads_out_is_not_read(
    make_folder: Callable[..., SiteConfig], make_dicom: DicomFile, tmp_path: Path, decoded: list[str]
) -> None:
    site = make_folder("ACC,E\nACC0,0\nACC1,1\nACCX,1\n", TOML)
    pixels = np.random.default_rng(9).integers(0, 4096, (24, 20)).astype(np.uint16)
    make_dicom(pixels, "secret.dcm", PatientID="X", AccessionNumber="ACCX", ViewPosition="PA")
    (tmp_path / "export" / "a" / "link.dcm").symlink_to(tmp_path / "secret.dcm")
    table = read_studies(site)
    assert dict(zip(table.path.tolist(), table.code.tolist(), strict=True))["a/link.dcm"] == "path"
    assert sorted(decoded) == ["0.dcm", "1.dcm", "2.dcm"]
    assert "X" not in table.patient.tolist()


def test_a_second_look_at_a_folder_reads_nothing(
    make_folder: Callable[..., SiteConfig], decoded: list[str]
) -> None:
    site = make_folder("ACC,E\nACC0,0\nACC1,1\n", TOML)
    assess_site(site, None, None, INDEX_SIZE)  # a lateral is among them, and not used
    assert "2.dcm" in decoded
    decoded.clear()
    assert assess_site(site, None, None, INDEX_SIZE).not_asked_for == {"view": 1}
    assert decoded == []
