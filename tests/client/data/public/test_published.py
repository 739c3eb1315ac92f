"""What all readers of public sets share: what is said of a folder that is not the published one."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.data.public.published import (
    ages,
    files_under,
    held_out_validation,
    placed,
    read_table,
    shipped,
    table_of,
    views,
)
from client.data.split import check_split
from common.errors import TableError


def test_a_missing_table_is_named_with_what_is_there_instead(tmp_path: Path) -> None:
    for name in ("b.csv", "a.txt", "d", "c.zip"):
        (tmp_path / name).touch()
    with pytest.raises(TableError, match=r"the nih layout needs x\.csv or y\.csv \(or \.gz\)") as caught:
        table_of(tmp_path, "nih", "x.csv", "y.csv")
    assert caught.value.found == "'a.txt', 'b.csv', 'c.zip' (+1)"
    assert "data.root" in caught.value.fix
    with pytest.raises(TableError) as caught:
        table_of(tmp_path / "nowhere", "nih", "x.csv")
    assert caught.value.found == "an empty or missing folder"


def test_a_wrong_header_names_the_missing_columns(write) -> None:
    path = write("t.csv", "Path,Sex", "PLANTED,F") / "t.csv"
    with pytest.raises(TableError, match="lacks 'Age', 'View'") as caught:
        read_table(path, "chexpert", ("Path", "Age", "View"))
    assert caught.value.found == "'Path', 'Sex'"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no rows"),
        (b"Path,Sex\n", "has no rows"),
        (b"Path,Sex\nPLANTED,F\nPLANTED,F,extra\n", "not a regular table at line 3"),
        (b'Path,Sex\n"PLANTED,F\n', "not a regular table"),
        (b"Path,Sex\nPLANT\xc9D,F\n", "not UTF-8"),
    ],
    ids=["empty", "header only", "surplus field", "open quote", "latin-1"],
)
def test_a_damaged_table_is_refused_without_showing_a_cell(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=said) as caught:
        read_table(path, "nih", ("Path",))
    assert "PLANT" not in str(caught.value)


@pytest.mark.parametrize("cut", [5, 30, -9], ids=["no header", "half", "no checksum"])
def test_a_truncated_or_false_gz_is_refused(write, cut: int) -> None:
    path = write("t.csv.gz", "Path,Sex", *(f"PLANTED{i},F" for i in range(99))) / "t.csv.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TableError, match="cannot be read") as caught:
        read_table(path, "nih", ("Path",))
    assert caught.value.found in {"EOFError", "BadGzipFile"}
    path.write_bytes(b"not packed at all")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(path, "nih", ("Path",))


def test_columns_are_read_as_stripped_text_and_short_rows_are_empty(write) -> None:
    root = write("t.csv", "﻿id, note,more,", "007 , a,NA,", "008")
    table = read_table(root / "t.csv", "nih", ("id", "note"), ["more", "absent"])
    assert {name: cells.tolist() for name, cells in table.items()} == {
        "id": ["007", "008"],
        "note": ["a", ""],
        "more": ["NA", ""],
    }


def test_a_renamed_column_is_found_under_either_name(write) -> None:
    root = write("t.csv", "id,Patient Gender", "1,F")
    table = read_table(root / "t.csv", "nih", ("Patient Sex",), renamed={"Patient Gender": "Patient Sex"})
    assert table["Patient Sex"].tolist() == ["F"]


def test_ages_that_nobody_reaches_are_left_out() -> None:
    cells = np.array(["0", "120", "121", "414", "058Y", "", "old"])
    assert ages(cells).tolist() == ["0", "120", "", "", "058Y", "", ""]


def test_views_are_spelled_one_way() -> None:
    cells = np.array(["PA", "ap", "AP Supine", "AP_horizontal", "LATERAL", "LL", "UNK", "", "nan"])
    expected = ["PA", "AP", "AP SUPINE", "AP SUPINE", "L", "LL", "", "", ""]
    assert views(cells).tolist() == expected


def test_validation_is_drawn_by_patient_and_never_from_the_test() -> None:
    patient = np.array([f"p{i // 3}" for i in range(3000)])
    test = np.arange(3000) >= 2400
    split = held_out_validation(patient, test, 1 / 8)
    check_split(patient, split)
    assert set(split[test]) == {"test"}
    assert (split == "validation").sum() == 300
    order = np.random.default_rng(0).permutation(3000)
    assert (held_out_validation(patient[order], test[order], 1 / 8) == split[order]).all()
    assert set(held_out_validation(patient, np.ones(3000, dtype=bool), 0.5)) == {"test"}


def test_pictures_are_found_by_their_stem(tmp_path: Path) -> None:
    (tmp_path / "images_002" / "images").mkdir(parents=True)
    (tmp_path / "images_002" / "images" / "b.png").touch()
    files = files_under(tmp_path, "images/*.png", "images_*/images/*.png")
    assert placed(["a", "b"], files, "images/{}.png").tolist() == ["images/a.png", "images_002/images/b.png"]


def test_a_shipped_table_beside_the_data_goes_first(tmp_path: Path, tables: Path) -> None:
    name = "nlmcxr_dicom_metadata.csv.gz"
    assert shipped(tmp_path, name) == tables / name
    (tmp_path / name).touch()
    assert shipped(tmp_path, name) == tmp_path / name
    assert shipped(tmp_path, "no such table") is None


def test_reading_never_imports_torch_or_torchxrayvision(repository: Path, tables: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from client.data.public.layouts import LAYOUTS\n"
        f"assert len(LAYOUTS['openi'](pathlib.Path({str(tables)!r}))['path']) == 7470\n"
        "assert not {'torch', 'torchvision', 'torchxrayvision'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=repository, check=True, timeout=100)


def test_nothing_of_a_table_is_logged(write, caplog: pytest.LogCaptureFixture) -> None:
    from client.data.public import rsna

    root = write("stage_2_train_labels.csv", "patientId,x,y,width,height,Target", "PLANTED,,,,,0")
    with caplog.at_level(logging.DEBUG):
        rsna.read(root)
    assert "counts as a patient of its own" in caplog.text
    assert "PLANTED" not in caplog.text
