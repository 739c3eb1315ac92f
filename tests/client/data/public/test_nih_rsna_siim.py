"""The three sets of NIH images: ChestX-ray14, the RSNA's and the SIIM's new readings of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from client.data.public import nih, rsna, siim
from client.data.split import check_split
from common.errors import TableError

NEW = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = (
    "00000007_000.png,Cardiomegaly|Effusion,0,7,57,M,PA,2682,2749,0.143,0.143",
    "00000007_001.png,No Finding,1,7,414,M,AP,2682,2749,0.143,0.143",
    "00000008_000.png,Pleural_Thickening,0,8,058Y,F,PA,2682,2749,0.143,0.143",
)


@pytest.mark.parametrize(
    "name", ["Data_Entry_2017_v2020.csv", "Data_Entry_2017_v2020.csv.gz", "Data_Entry_2017.csv"]
)
def test_nih_lists_are_complete(write, name: str) -> None:
    columns = nih.read(write(name, NEW, *ROWS))
    assert columns["path"][0] == "images/00000007_000.png"
    assert columns["study"].tolist() == ["7/0", "7/1", "8/0"]
    assert columns["age"].tolist() == ["57", "", "058Y"]
    assert columns["sex"].tolist() == ["M", "M", "F"]
    assert columns["effusion"].tolist() == ["1", "0", "0"]
    assert columns["pleural_thickening"].tolist() == ["0", "0", "1"]
    assert len(nih.LABELS) == 14 and "split" not in columns


def test_nih_headers_of_either_release_are_read(write) -> None:
    old = NEW.replace("Gender", "Sex") + ","
    columns = nih.read(write("Data_Entry_2017.csv", old, *(row + "," for row in ROWS)))
    assert columns["sex"].tolist() == ["M", "M", "F"]


def test_nih_images_are_found_in_their_twelve_folders(write, tmp_path: Path) -> None:
    folder = tmp_path / "images_003" / "images"
    folder.mkdir(parents=True)
    (folder / "00000008_000.png").touch()
    columns = nih.read(write("Data_Entry_2017_v2020.csv", NEW, *ROWS))
    assert columns["path"].tolist()[1:] == ["images/00000007_001.png", "images_003/images/00000008_000.png"]


def test_nih_keeps_the_published_test_and_draws_validation_by_patient(write, tmp_path: Path) -> None:
    rows = [f"{i // 4:08d}_{i % 4:03d}.png,Mass,{i % 4},{i // 4},60,F,PA,1,1,1,1" for i in range(4000)]
    (tmp_path / "test_list.txt").write_text("\n".join(row.split(",")[0] for row in rows[3200:]))
    columns = nih.read(write("Data_Entry_2017_v2020.csv", NEW, *rows))
    assert set(columns["split"][3200:]) == {"test"}
    assert (columns["split"] == "validation").sum() == 400
    check_split(columns["patient"], columns["split"])


LABELS = "patientId,x,y,width,height,Target"
BOXES = (
    "0004cfab,,,,,0",
    "00436515,264.0,152.0,213.0,379.0,1",
    "00436515,562.0,152.0,256.0,453.0,1",
    "003d8fa0,,,,,0",
)


def test_rsna_boxes_of_one_image_are_one_row(write, tables: Path) -> None:
    write("stage_2_detailed_class_info.csv", "patientId,class", "0004cfab,No Lung Opacity / Not Normal",
          "00436515,Lung Opacity", "00436515,Lung Opacity", "003d8fa0,Normal")  # fmt: skip
    columns = rsna.read(write("stage_2_train_labels.csv", LABELS, *BOXES))
    assert columns["path"].tolist() == [
        f"stage_2_train_images/{i}.dcm" for i in ("0004cfab", "003d8fa0", "00436515")
    ]
    assert columns["pneumonia"].tolist() == ["0", "0", "1"]
    # Not Normal may be a mass: what it lacks is an opacity suspicious for pneumonia.
    assert columns["lung_opacity"].tolist() == ["", "0", "1"]


def test_rsna_names_patients_only_by_the_mapping(
    write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write("stage_2_train_labels.csv", LABELS, *BOXES)
    with caplog.at_level(logging.WARNING):
        assert rsna.read(root)["patient"].tolist() == ["0004cfab", "003d8fa0", "00436515"]
    assert rsna.MAPPING in caplog.text
    entries = [
        {"subset_img_id": "0004cfab", "img_id": "00014197_010.png", "orig_labels": ["No Finding"]},
        {"subset_img_id": "00436515", "img_id": "00014197_003.png", "orig_labels": ["Mass"]},
    ]
    (tmp_path / rsna.MAPPING).write_text(json.dumps(entries))
    caplog.clear()
    # As in NIH's own table; an image the mapping does not know is nobody's.
    assert rsna.read(root)["patient"].tolist() == ["14197", "", "14197"]
    assert not caplog.records


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"a": 1}', '[{"subset_img_id": "PLANTED"}]', "[" * 100_000]
)
def test_a_damaged_mapping_is_refused(write, tmp_path: Path, content: str) -> None:
    root = write("stage_2_train_labels.csv", LABELS, *BOXES)
    (tmp_path / rsna.MAPPING).write_text(content)
    with pytest.raises(TableError, match="not the mapping") as caught:
        rsna.read(root)
    assert "PLANTED" not in str(caught.value)


def test_rsna_reads_the_headers_table_beside_the_data(write) -> None:
    header = "BodyPartExamined,Filename,PatientAge,PatientID,PatientSex,ViewPosition"
    write(rsna.HEADERS, header, "CHEST,x.dcm,155,0004cfab,F,AP", "CHEST,y.dcm,44,00436515,M,PA")
    columns = rsna.read(write("stage_2_train_labels.csv", LABELS, *BOXES))
    assert columns["view"].tolist() == ["AP", "", "PA"]
    assert columns["age"].tolist() == ["", "", "44"]
    assert columns["sex"].tolist() == ["F", "", "M"]


def test_rsna_without_the_headers_table_leaves_the_view_to_the_files(
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rsna, "shipped", lambda root, name: None)
    columns = rsna.read(write("stage_2_train_labels.csv", LABELS, *BOXES))
    assert set(columns["view"].tolist()) == set(columns["age"].tolist()) == {""}


def test_siim_masks_of_one_image_are_one_row(write, tmp_path: Path) -> None:
    folder = tmp_path / "dicom-images-train" / "1.2.3" / "1.2.4"
    folder.mkdir(parents=True)
    (folder / "1.2.5.dcm").touch()
    root = write(
        "train-rle.csv", "ImageId, EncodedPixels", "1.2.6, -1", "1.2.5, 557374 2 1015 8", "1.2.5, 3 4"
    )
    columns = siim.read(root)
    assert columns["path"].tolist() == [
        "dicom-images-train/1.2.3/1.2.4/1.2.5.dcm",
        "dicom-images-train/1.2.6.dcm",
    ]
    assert columns["pneumothorax"].tolist() == ["1", "0"]
    assert np.array_equal(columns["patient"], columns["study"])
