"""The table of studies: formats, filters, labels, and what each mistake is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.data.columns import matches, numbers, read_columns
from client.data.table import read_studies
from client.site import SiteConfig
from common.errors import DataError, LabelError, SplitError, TableError

Make = Callable[..., SiteConfig]
ANY = '[data]\ntable = "studies.csv"\nviews = "any"\n'


def test_labels_are_1_0_and_nan(make_site: Make) -> None:
    site = make_site(
        {"patient": ["a", "b", "c"], "view": ["PA", "ap", "PA"], "Edema": ["1", "0.0", ""]},
        '[labels]\nedema = "Edema"\n',
    )
    table = read_studies(site, ["edema", "Pleural Effusion"])
    assert table.findings == ("edema", "effusion")
    np.testing.assert_array_equal(table.labels[:, 0], [1, 0, np.nan])
    assert np.isnan(table.labels[:, 1]).all()


def test_csv_and_parquet_say_the_same(make_site: Make, tmp_path: Path) -> None:
    rows = {
        "patient": [12, 7, 3],
        "view": ["PA", "AP", "LL"],
        "age": [61.0, np.nan, 40.5],
        "sex": ["M", "female", "O"],
    }
    csv = read_studies(make_site(rows, ANY), [])
    pd.read_csv(tmp_path / "studies.csv").to_parquet(tmp_path / "studies.parquet")
    parquet = read_studies(make_site(rows, ANY.replace(".csv", ".parquet")), [])
    for name in ("path", "patient", "view", "age", "sex"):
        np.testing.assert_array_equal(getattr(csv, name), getattr(parquet, name))
    assert parquet.patient.tolist() == ["12", "7", "3"]
    assert parquet.sex.tolist() == ["M", "F", ""]


def test_identifiers_stay_text(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("\ufeffpatient,x\r\n007,NA\r\n7,\r\n1e5,ü\r\n".encode())
    columns = read_columns(file)
    assert columns["patient"].tolist() == ["007", "7", "1e5"]
    assert columns["x"].tolist() == ["NA", "", "ü"]


def test_an_integer_column_with_gaps_does_not_become_floats(tmp_path: Path) -> None:
    pd.DataFrame({"patient": [12.0, np.nan]}).to_parquet(tmp_path / "t.parquet")
    assert read_columns(tmp_path / "t.parquet")["patient"].tolist() == ["12", ""]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no rows"),
        (b"a,b\n", "has no rows"),
        (b"a,b\n1,2,3\n", "not a regular table at line 2"),
        (b'a,b\n1,"2\n', "not a regular table"),
        (b"a;b\n1;2\n", "not separated by commas"),
        (b"a,a\n1,2\n", "more than one column 'a'"),
        ("a,b\nü,2\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_what_is_not_a_table(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError, match=expected):
        read_columns(tmp_path / "t.csv")


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(TableError, match="cannot be read"):
        read_columns(tmp_path / "t.parquet")


def test_a_missing_table_and_a_missing_root(make_site: Make, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"there is no table other\.csv"):
        read_studies(make_site({"patient": ["a"]}, '[data]\ntable = "other.csv"\n'), [])
    with pytest.raises(TableError, match=r"data\.root is not a folder"):
        read_studies(make_site({"patient": ["a"]}, '[data]\ntable = "studies.csv"\nroot = "nowhere"\n'), [])


def test_a_missing_label_column_reads_like_the_style_guide(make_site: Make) -> None:
    rows = {"Pleural_Effusion": [1], "Cardiomegaly": [0], "Edema": [0], "patient": ["a"], "view": ["PA"]}
    site = make_site(rows, '[labels]\neffusion = "Pleural effusion"\n')
    with pytest.raises(LabelError) as caught:
        read_studies(site, ["effusion"])
    assert str(caught.value) == (
        "E_LABELS  site.toml: label column 'Pleural effusion' is not in studies.csv\n"
        "          found: 'Pleural_Effusion', 'Cardiomegaly', 'Edema' (+3)\n"
        '          fix:   set labels.effusion = "Pleural_Effusion"'
    )


def test_a_missing_column_names_its_key(make_site: Make) -> None:
    site = make_site({"patient": ["a"], "view": ["PA"]}, '[columns]\npatient = "patiente"\n')
    with pytest.raises(TableError, match=r"'patiente' \(columns\.patient\)") as caught:
        read_studies(site, [])
    assert "did you mean 'patient'?" in str(caught.value)
    site = make_site({"patient": ["a"], "view": ["PA"]}, '[columns]\nage = "Alter"\n')
    with pytest.raises(TableError, match=r"'Alter' \(columns\.age\)"):
        read_studies(site, [])


def test_a_cell_that_is_no_label_sets_its_row_aside(make_site: Make) -> None:
    rows = {"patient": list("abcd"), "view": ["PA"] * 4}
    rows |= {"x": ["0", "1", "77231", "1"], "y": ["1", "", "", "2"]}
    site = make_site(rows, '[labels]\nedema = "x"\nhernia = "y"\n')
    table = read_studies(site, ["edema"])
    assert table.code.tolist() == ["", "", "label-value", "label-value"]  # whichever finding is asked for
    np.testing.assert_array_equal(table.labels[:, 0], [0, 1, np.nan, 1])


def test_a_column_that_holds_no_labels_is_the_wrong_column(make_site: Make) -> None:
    site = make_site(
        {"patient": list("abc"), "view": ["LL", "PA", "PA"], "x": ["", "1004", "77231"]},
        '[labels]\nedema = "x"\n',
    )
    with pytest.raises(
        LabelError, match="2 cells that are not 1, 0, -1 or empty, the first in row 2"
    ) as caught:
        read_studies(site, ["edema"])
    assert "77231" not in str(caught.value)


def test_uncertain_needs_a_policy(make_site: Make) -> None:
    rows = {"patient": ["a", "b"], "view": ["PA", "PA"], "x": ["-1", "1"]}
    with pytest.raises(LabelError, match="no policy"):
        read_studies(make_site(rows, '[labels]\nedema = "x"\n'), ["edema"])
    site = make_site(rows, '[labels]\nedema = "x"\n[uncertainty]\nedema = "ones"\n')
    np.testing.assert_array_equal(read_studies(site, ["edema"]).labels, [[1], [1]])


def test_words_as_labels(make_site: Make) -> None:
    rows = {"patient": list("abc"), "view": ["PA"] * 3, "finding": ["Bacterial", "Normal", "Viral"]}
    toml = (
        '[labels]\nbacterial_pneumonia = {{ column = "finding", positive = ["{}"], negative = ["Normal"] }}\n'
    )
    table = read_studies(make_site(rows, toml.format("Bacterial")), ["bacterial_pneumonia"])
    np.testing.assert_array_equal(table.labels[:, 0], [1, 0, np.nan])
    with pytest.raises(LabelError, match=r"labels\.bacterial_pneumonia\.positive: no row .* has 'Bactrial'"):
        read_studies(make_site(rows, toml.format("Bactrial")), ["bacterial_pneumonia"])


def test_filters_by_word_and_number_and_counts(make_site: Make) -> None:
    rows = {
        "patient": list("abcd"),
        "view": ["PA", "PA", "LL", "PA"],
        "site": ["x", "x", "x", "y"],
        "year": [1, 2, 2, 2],
    }
    table = read_studies(make_site(rows, '[filter]\nsite = "x"\nyear = [2.0]\n'), [])
    assert table.patient.tolist() == ["b", "c"]
    assert table.code.tolist() == ["", "view"]
    assert table.removed == {"site": 1, "year": 1}
    with pytest.raises(TableError, match=r"no row of studies\.csv is left of 4") as caught:
        read_studies(make_site(rows, '[filter]\nsite = "z"\n'), [])
    assert "site removed 4" in str(caught.value)
    with pytest.raises(TableError, match=r"'sites' \(filter\.sites\)"):
        read_studies(make_site(rows, '[filter]\nsites = "x"\n'), [])


def test_a_view_is_not_assumed(make_site: Make) -> None:
    with pytest.raises(TableError, match="does not say which images are PA or AP"):
        read_studies(make_site({"patient": ["a"]}), [])
    assert len(read_studies(make_site({"patient": ["a"]}, ANY), [])) == 1


def test_paths_stay_inside_the_root(make_site: Make, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root" / "loop")
    bad = [
        "/etc/passwd",
        "../x.png",
        "a/../../x.png",
        "link/x.png",
        "C:\\x.png",
        "..\\x.png",
        "",
        "\\\\host\\x",
    ]
    paths = [*bad, "ok.png", "./sub/ok.png", "..ok.png"]
    site = make_site(
        {"patient": [f"p{i}" for i in range(len(paths))], "path": paths},
        '[data]\ntable = "studies.csv"\nviews = "any"\nroot = "root"\n',
        images=False,
    )
    table = read_studies(site, [])
    assert table.code.tolist() == ["path"] * len(bad) + [""] * 3
    assert table.path.tolist()[-3:] == ["ok.png", "sub/ok.png", "..ok.png"]


def test_a_row_without_a_patient_is_set_aside(make_site: Make) -> None:
    table = read_studies(make_site({"patient": ["a", "", " "]}, ANY), [])
    assert table.code.tolist() == ["", "no-patient", "no-patient"]


@pytest.mark.parametrize(
    ("patients", "labels", "expected"),
    [
        ("aba", "110", ["conflict", "", "conflict"]),
        ("aba", "111", ["", "", "duplicate"]),
        ("abc", "111", ["conflict", "", "conflict"]),
        ("aba", ["1", "1", ""], ["", "", "duplicate"]),
    ],
)
def test_an_image_listed_twice(
    make_site: Make, patients: str, labels: Sequence[str], expected: list[str]
) -> None:
    rows = {"patient": list(patients), "path": ["x.png", "y.png", "./x.png"], "x": list(labels)}
    assert read_studies(make_site(rows, ANY + '[labels]\nedema = "x"\n'), []).code.tolist() == expected


def test_clinical_variables(make_site: Make) -> None:
    rows = {
        "patient": list("abc"),
        "age": ["061Y", "", "300"],
        "sex": ["M", "F", ""],
        "Temp": ["37.5", "375", "warm"],
    }
    site = make_site(rows, ANY + '[clinical]\ntemp = "Temp"\n')
    table = read_studies(site, [], ["age", "male", "temperature", "crp"])
    nan = np.nan
    expected = [[61, 1, 37.5, nan], [nan, 0, nan, nan], [nan, nan, nan, nan]]
    np.testing.assert_array_equal(table.clinical, np.array(expected, np.float32))
    assert read_studies(site).variables == ("age", "male", "temperature")
    with pytest.raises(TableError, match=r"'T' \(clinical\.temperature\)"):
        read_studies(make_site(rows, ANY + '[clinical]\ntemp = "T"\n'))


def test_the_tables_own_split(make_site: Make) -> None:
    rows = {"patient": ["a", "b", "c"], "split": ["Train", "val", "test"]}
    table = read_studies(make_site(rows, ANY), [])
    assert table.split is not None
    assert table.split.tolist() == ["train", "validation", "test"]
    with pytest.raises(SplitError, match="1 rows have no split, the first is row 2"):
        read_studies(make_site({**rows, "split": ["train", "", "test"]}, ANY), [])
    with pytest.raises(SplitError, match="1 patients are in more than one split"):
        read_studies(make_site({**rows, "patient": ["a", "a", "c"]}, ANY), [])


def test_take_keeps_rows_together(make_site: Make) -> None:
    site = make_site({"patient": ["a", "b", "c"], "age": ["1", "024M", "x"]}, ANY)
    taken = read_studies(site, ["edema"]).take(np.array([2, 1]))
    assert taken.patient.tolist() == ["c", "b"]
    np.testing.assert_array_equal(taken.age, np.array([np.nan, 2], np.float32))
    assert taken.labels.shape == (2, 1)
    assert taken.findings == ("edema",)


def test_cells_as_numbers_and_values() -> None:
    values, odd = numbers(np.array(["1", " ".strip(), "NaN", "x", "-1.0"]))
    np.testing.assert_array_equal(values, [1, np.nan, np.nan, np.nan, -1])
    assert odd.tolist() == [False, False, False, True, False]
    assert matches(np.array(["1", "1.0", "one"]), ["1"]).tolist() == [True, False, False]


def test_no_message_holds_a_patient(make_site: Make, planted: tuple[str, ...]) -> None:
    good = {"patient": [planted[0], planted[1]], "path": [f"{planted[2]}.png", "b.png"], "x": ["1", "0"]}
    spoiled = [
        {**good, "x": [planted[0], planted[1]]},
        {**good, "x": [planted[2], planted[2]]},
        {**good, "split": [planted[1], "train"]},
        {**good, "patient": [planted[1]] * 2, "split": ["train", "test"]},
        {**good, "x": ["-1", "0"]},
    ]
    for rows in spoiled:
        with pytest.raises(DataError) as caught:
            read_studies(make_site(rows, ANY + '[labels]\nedema = "x"\n'), ["edema"])
        for text in planted:
            assert text not in str(caught.value) + repr(caught.value)


def test_labels_read_from_reports(make_site: Make) -> None:
    rows = {
        "patient": list("abcd"),
        "report": [
            "INDICATION: Known edema.\nFINDINGS: Small pleural effusion. No pneumothorax.",
            "FINDINGS: No effusion. Possible edema.",
            "Lines and tubes in place.",
            "",
        ],
        "E": ["1", "1", "0", ""],
    }
    toml = ANY + '[labels]\nedema = "E"\n[text]\nlabel = ["Pleural Effusion", "edema"]\n'
    table = read_studies(make_site(rows, toml))
    assert table.annotated == ("edema", "effusion")
    nan = np.nan
    np.testing.assert_array_equal(table.labels, [[1, 1], [1, 0], [0, nan], [nan, nan]])
    only = ANY + '[text]\nlabel = ["edema"]\n'
    with pytest.raises(LabelError, match="no policy"):
        read_studies(make_site(rows, only))
    table = read_studies(make_site(rows, 'uncertainty = "chexpert-5"\n' + only))
    np.testing.assert_array_equal(table.labels[:, 0], [nan, 1, nan, nan])  # the indication is not read
    with pytest.raises(TableError, match="no column of reports"):
        read_studies(make_site({"patient": ["a"]}, only))
