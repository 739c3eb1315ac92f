"""PadChest's tree of terms and VinDr-CXR's three readers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from client.data.public import padchest, vindr
from client.data.split import check_split
from common.errors import TableError

PADCHEST = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
    "Projection,MethodProjection,Pediatric,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence"
)


def _image(
    i: int, labels: str, birth: str = "1930.0", view: str = "PA", sex: str = "F"
) -> tuple[object, ...]:
    return (
        i, f"im{i}.png", 7, "20140915", f"s{i}", f"p{i}", birth, sex, "", view, "Manual review", "No",
        " sin hallazg .", "Physician", labels, "['loc basal']", "[['nodule', 'loc basal']]",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("['pleural effusion']", {"effusion": "1", "nodule": "0"}),
        ("['pericardial effusion', 'pseudonodule']", {"effusion": "0", "nodule": "0"}),
        (
            "['multiple nodules', ' laminar atelectasis', '']",
            {"nodule": "1", "atelectasis": "1", "mass": "0"},
        ),
        ("['consolidation']", {"consolidation": "1", "infiltration": "0"}),
        ("['subcutaneous emphysema', 'mediastinal mass']", {"emphysema": "0", "mass": "0"}),
        (
            "['tuberculosis sequelae', 'calcified adenopathy']",
            {"tuberculosis": "0", "hilar_enlargement": "0"},
        ),
        ("['dai']", {"support_device": "1"}),
        ("['normal']", {"nodule": "0"}),
        ("['unchanged', 'cardiomegaly']", {"cardiomegaly": "1", "nodule": ""}),
        ("['normal', 'unchanged']", {"nodule": "0"}),
        ("['exclude']", {"nodule": ""}),
        ("['suboptimal study']", {"nodule": "0"}),
        ("['']", {"nodule": ""}),
        ("[]", {"nodule": ""}),
        ("nan", {"nodule": ""}),
        ("", {"nodule": ""}),
    ],
)
def test_padchest_terms_are_matched_whole(write, labels: str, expected: dict[str, str]) -> None:
    columns = padchest.read(write(padchest.TABLE, PADCHEST, _image(0, labels)))
    assert {finding: columns[finding][0] for finding in expected} == expected


def test_padchest_rows_tell_view_age_and_folder(write) -> None:
    rows = [
        _image(0, "['normal']", view="AP_horizontal"),
        _image(1, "['normal']", birth="", view="L", sex="None"),
        _image(2, "['normal']", birth="2020", view="EXCLUDE", sex="M"),
    ]
    columns = padchest.read(write(padchest.TABLE + ".gz", PADCHEST, *rows))
    assert columns["path"].tolist() == ["7/im0.png", "7/im1.png", "7/im2.png"]
    assert columns["view"].tolist() == ["AP SUPINE", "L", "EXCLUDE"]
    assert columns["age"].tolist() == ["84", "", ""]
    assert columns["sex"].tolist() == ["F", "", "M"]
    assert columns["MethodLabel"].tolist() == ["Physician"] * 3


def test_padchest_in_one_folder_is_found(write, tmp_path: Path) -> None:
    (tmp_path / "im0.png").touch()
    columns = padchest.read(write(padchest.TABLE, PADCHEST, _image(0, "['normal']")))
    assert columns["path"].tolist() == ["im0.png"]


@pytest.mark.parametrize(
    "labels",
    ["['nodule'", "PLANTED", "[__import__('os')]", "['nodule'] + ['mass']", "['a\\'PLANTED']", "[" * 9999],
)
def test_labels_that_are_no_list_of_terms_say_nothing(
    write, labels: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        columns = padchest.read(write(padchest.TABLE, PADCHEST, _image(0, labels), _image(1, "['nodule']")))
    assert columns["nodule"].tolist() == ["", "1"]
    assert "1 rows have labels that are no list" in caplog.text
    assert "PLANTED" not in caplog.text


KAGGLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
BOX = ",691.0,1375.0,1653.0,1831.0"


def test_vindr_boxes_are_counted_by_reader(write) -> None:
    rows = [
        # Two of three see cardiomegaly; one reader's two boxes of a nodule are one vote.
        "im1,Cardiomegaly,3,R10" + BOX, "im1,Cardiomegaly,3,R8" + BOX, "im1,No finding,14,R9,,,,",
        "im1,Nodule/Mass,8,R10" + BOX, "im1,Nodule/Mass,8,R10" + BOX,
        "im0,No finding,14,R8,,,,", "im0,No finding,14,R9,,,,", "im0,Pleural effusion,10,R10" + BOX,
    ]  # fmt: skip
    columns = vindr.read(write("train.csv", KAGGLE, *rows))
    assert columns["path"].tolist() == ["train/im0.dicom", "train/im1.dicom"]
    assert columns["cardiomegaly"].tolist() == ["0", "1"]
    assert columns["nodule_or_mass"].tolist() == ["0", "0"]
    assert columns["effusion"].tolist() == ["0", "0"]
    assert columns["view"].tolist() == ["PA", "PA"]
    assert "pneumonia" not in columns and "split" not in columns


CLASSES = sorted({name for names in vindr.LABELS_PHYSIONET.values() for name in names})


def _answer(*seen: str) -> tuple[int, ...]:
    return tuple(int(name in seen) for name in CLASSES)


def test_vindr_of_physionet_has_votes_and_a_consensus(write, tmp_path: Path) -> None:
    header = ",".join(CLASSES)
    rows = [
        (f"im{i}", f"R{r}", *answer)
        for i in range(16)
        for r, answer in enumerate(
            [_answer("Edema", "Rib fracture"), _answer("Edema", "Clavicle fracture"), _answer("COPD")]
        )
    ]
    write("annotations/image_labels_train.csv", f"image_id,rad_id,{header}", *rows)
    root = write("annotations/image_labels_test.csv", f"image_id,{header}", ("im99", *_answer("COPD")))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "im99.png").touch()
    columns = vindr.read(root)
    assert columns["path"].tolist()[-2:] == ["train/im9.dicom", "test/im99.png"]
    assert columns["edema"].tolist() == ["1"] * 16 + ["0"]
    # A fracture of one bone or another: two readers saw one.
    assert columns["fracture"].tolist() == ["1"] * 16 + ["0"]
    assert columns["clavicle_fracture"].tolist() == ["0"] * 17
    assert columns["chronic_obstructive_disease"].tolist() == ["0"] * 16 + ["1"]
    split, counts = np.unique(columns["split"], return_counts=True)
    assert dict(zip(split.tolist(), counts.tolist(), strict=True)) == {
        "test": 1,
        "train": 14,
        "validation": 2,
    }
    assert columns["split"][-1] == "test"
    check_split(columns["patient"], columns["split"])


def test_vindr_without_labels_says_which_tables_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "sample_submission.csv").touch()
    with pytest.raises(TableError, match=r"train\.csv or annotations/image_labels_train\.csv") as caught:
        vindr.read(tmp_path)
    assert caught.value.found == "'sample_submission.csv'"
