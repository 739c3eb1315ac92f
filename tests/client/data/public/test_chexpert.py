"""CheXpert and MIMIC-CXR-JPG: blanks and -1 as published, splits, folders."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from client.data.public import chexpert, mimic
from client.data.split import check_split
from common.errors import TableError

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
    "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,"
    "Fracture,Support Devices"
)
SET = "CheXpert-v1.0-small"
TRAIN = (
    f"{SET}/train/patient00007/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    f"{SET}/train/patient00007/study1/view2_lateral.jpg,Female,68,Lateral,,,,-1.0,1.0,,-1.0,,,,,,,,",
    f"{SET}/train/patient00012/study3/view1_frontal.jpg,Unknown,0,Frontal,PA,,0.0,,,,,,,,,1.0,,,",
)
VALID = f"{SET}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP," + ",".join(["0.0"] * 14)


def test_blanks_stay_blank_and_uncertain_stays_uncertain(write) -> None:
    columns = chexpert.read(write("train.csv", HEADER, *TRAIN))
    assert columns["path"][0] == "train/patient00007/study1/view1_frontal.jpg"
    assert columns["patient"].tolist() == ["patient00007", "patient00007", "patient00012"]
    assert columns["study"].tolist()[1:] == ["patient00007/study1", "patient00012/study3"]
    assert columns["view"].tolist() == ["AP", "L", "PA"]
    assert columns["age"].tolist() == ["68", "68", ""]
    assert columns["sex"].tolist() == ["F", "F", ""]
    # The first row has No Finding = 1: it does not make the blanks 0.
    assert columns["edema"].tolist() == ["", "-1", ""]
    assert columns["pneumothorax"].tolist() == ["0", "", ""]
    assert columns["effusion"].tolist() == ["", "", "1"]
    assert columns["support_device"].tolist() == ["1", "", ""]
    assert "no_finding" not in columns
    assert "split" not in columns


@pytest.mark.parametrize("folder", ["", "CheXpert-v1.0-small/", "CheXpert-v1.0/"])
def test_the_root_may_be_the_set_or_the_folder_above(write, folder: str) -> None:
    root = write(f"{folder}train.csv.gz", HEADER, *TRAIN)
    paths = chexpert.read(root)["path"]
    assert paths[2] == f"{folder}train/patient00012/study3/view1_frontal.jpg"


def test_all_three_tables_are_the_splits(write) -> None:
    write("train.csv", HEADER, *TRAIN)
    write("valid.csv", HEADER, VALID)
    # The labels of the test set are published without age, sex and view.
    test_header = "Path," + HEADER.split(",", 5)[5]
    row = f"CheXpert-v1.0/test/patient64741/study1/view2_lateral.jpg,{','.join('0' * 14)}"
    columns = chexpert.read(write("test.csv", test_header, row))
    assert columns["split"].tolist() == ["train"] * 3 + ["validation", "test"]
    assert columns["view"].tolist()[3:] == ["AP", "L"]
    assert columns["sex"].tolist()[3:] == ["M", ""]
    assert columns["edema"].tolist()[3:] == ["0", "0"]


def test_without_the_test_set_the_radiologists_labels_are_the_test(write) -> None:
    rows = [
        f"{SET}/train/patient{i:05d}/study1/view1_frontal.jpg,Male,50,Frontal,AP" + "," * 14
        for i in range(900)
    ]
    write("train.csv", HEADER, *rows)
    columns = chexpert.read(write("valid.csv", HEADER, VALID))
    split, counts = np.unique(columns["split"], return_counts=True)
    assert dict(zip(split.tolist(), counts.tolist(), strict=True)) == {
        "test": 1,
        "train": 880,
        "validation": 20,
    }
    assert columns["split"][-1] == "test"
    check_split(columns["patient"], columns["split"])


def test_a_cell_that_is_no_label_is_left_to_be_counted(write) -> None:
    odd = TRAIN[2].replace("1.0", "2.0")
    assert chexpert.read(write("train.csv", HEADER, *TRAIN, odd))["effusion"][3] == "2.0"


def test_foreign_paths_are_refused_without_showing_them(write) -> None:
    root = write("train.csv", HEADER, "PLANTED.jpg,Male,73,Frontal,AP" + "," * 14)
    with pytest.raises(TableError, match="'Path' is not RELEASE/SPLIT/patientN") as caught:
        chexpert.read(root)
    assert "PLANTED" not in str(caught.value)


STUDY = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,"
    "Support Devices"
)
IMAGE = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,"
    "StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning"
)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___-year-old with cough  // pneumonia?

 FINDINGS:

 The lungs are clear.

 IMPRESSION: Normal.
"""


@pytest.fixture
def mimic_root(write) -> Path:
    rows = [
        ("aa-1", 10000032, 50414267, "CHEST", "PA", 3056, 2544, 21800506, 213014.5, "", "", "Erect"),
        ("aa-2", 10000032, 50414267, "CHEST", "LATERAL", 3056, 2544, 21800506, 213014.5, "", "", "Erect"),
        ("bb-1", 11000011, 51131486, "CHEST", "", 3056, 2544, 21800506, 213014.5, "", "", ""),
    ]
    write("mimic-cxr-2.0.0-metadata.csv.gz", IMAGE, *rows)
    split = [("aa-1", 50414267, 10000032, "train"), ("aa-2", 50414267, 10000032, "train")]
    write(
        "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split",
        *split,
        ("bb-1", 51131486, 11000011, "validate"),
    )
    return write("mimic-cxr-2.0.0-chexpert.csv.gz", STUDY, "10000032,50414267,,-1.0,,1.0,,,,,,,,0.0,,")


def test_mimic_images_carry_the_labels_of_their_study(mimic_root: Path) -> None:
    columns = mimic.read(mimic_root)
    assert columns["path"].tolist() == [
        "files/p10/p10000032/s50414267/aa-1.jpg",
        "files/p10/p10000032/s50414267/aa-2.jpg",
        "files/p11/p11000011/s51131486/bb-1.jpg",
    ]
    assert columns["view"].tolist() == ["PA", "L", ""]
    assert columns["patient"].tolist()[1:] == ["10000032", "11000011"]
    assert columns["split"].tolist() == ["train", "train", "validation"]
    assert columns["cardiomegaly"].tolist() == ["-1", "-1", ""]
    assert columns["edema"].tolist() == ["1", "1", ""]
    # The last study has no row in the label table: nothing is known of it.
    assert columns["pneumonia"].tolist() == ["0", "0", ""]
    assert "report" not in columns


def test_mimic_takes_negbio_where_there_is_no_chexpert_table(mimic_root: Path) -> None:
    packed = mimic_root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    packed.rename(mimic_root / "mimic-cxr-2.0.0-negbio.csv.gz")
    assert mimic.read(mimic_root)["edema"].tolist() == ["1", "1", ""]
    (mimic_root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    assert "split" not in mimic.read(mimic_root)


def test_mimic_reports_beside_the_images_are_read(mimic_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = mimic_root / "files" / "p10" / "p10000032"
    folder.mkdir(parents=True)
    (folder / "s50414267.txt").write_text(REPORT)
    with caplog.at_level(logging.DEBUG):
        columns = mimic.read(mimic_root)
    assert columns["indication"].tolist() == ["___-year-old with cough // pneumonia?"] * 2 + [""]
    assert columns["report"][0] == REPORT.strip()
    assert columns["report"][2] == ""
    assert "cough" not in caplog.text


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("HISTORY: Fall.\nCOMPARISON: None.", "Fall."),
        ("REASON FOR EXAMINATION:\n\n  Line\n placement\n\n", "Line placement"),
        ("Indication of effusion: small.", ""),
        ("FINDINGS: Clear.", ""),
        ("", ""),
    ],
)
def test_the_request_is_found_under_its_headings(report: str, expected: str) -> None:
    assert mimic.indication_of(report) == expected
