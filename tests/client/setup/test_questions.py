"""A site.toml by questions: good guesses, no cell of a table shown, and a file that loads and indexes."""

from __future__ import annotations

import io
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid
from rich.console import Console

from client.data.columns import read_columns
from client.data.index import index_site
from client.data.public import padchest
from client.data.public.layouts import LAYOUTS
from client.setup import guess_files
from client.setup.guess import guess_site
from client.setup.guess_columns import by_name
from client.setup.interview import ask
from client.setup.questions import describe_site, from_guesses, suggest_text
from client.site import load_site
from common.errors import ConfigError, FedcxrError, TableError

ROWS = 40
PLANTED = ("Doe", "Jane", "77231", "1.2.840.5")


class Person:
    """Answers questions by their first words, else with Enter, and remembers what was said."""

    def __init__(self, **answers):
        self.answers = {question.replace("_", " "): list(given) for question, given in answers.items()}
        self.told: list[str] = []
        self.asked: list[str] = []

    def answer(self, question, guess):
        self.asked.append(f"{question} [{guess}]")
        assert self.asked[-5:] != [self.asked[-1]] * 5, self.told[-1]
        for start, given in self.answers.items():
            if question.startswith(start):
                assert given, f"asked again: {question}; told: {self.told[-1]}"
                return given.pop(0)
        return ""

    def tell(self, text):
        self.told.append(text)

    @property
    def seen(self):
        return "\n".join([*self.told, *self.asked])


def interview(folder, **answers):
    """Return the settings that come of the answers, their text and the person asked."""
    person = Person(**answers)
    text = ask(guess_site(folder), person.answer, person.tell)
    (folder / "site.toml").write_text(text)
    return load_site(folder / "site.toml"), text, person


@pytest.fixture
def hospital(tmp_path):
    """A folder with pictures and a table as a hospital might export it; keyword arguments are columns."""

    def make(images="export/images", table="studies.csv", **columns):
        folder = tmp_path / "St. Mary's"
        (folder / images).mkdir(parents=True)
        paths = [f"{i:03d}.png" for i in range(ROWS)]
        for i, path in enumerate(paths):
            Image.fromarray(np.full((64, 64), i + 20, np.uint8)).save(folder / images / path)
        usual = {
            "Image": [f"{images.rpartition('/')[2]}/{path}" for path in paths],
            "Patient ID": [f"77231-{i // 2}" for i in range(ROWS)],
            "Patient Name": ["Doe^Jane"] * ROWS,
            "View Position": ["PA", "AP"] * (ROWS // 2),
            "Pleural Effusion": [1, 0] * (ROWS // 2),
        }
        frame = pd.DataFrame(usual | {name: cells * (ROWS // len(cells)) for name, cells in columns.items()})
        frame.to_csv(folder / table, index=False)
        return folder

    return make


@pytest.fixture
def dicom(tmp_path):
    """A folder of DICOM files without suffix, and perhaps a table of labels."""

    def make(**columns):
        folder = tmp_path / "pacs"
        for i in range(4):
            dataset = Dataset()
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
            dataset.SOPClassUID = ComputedRadiographyImageStorage
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.PatientID, dataset.AccessionNumber, dataset.StudyInstanceUID = (
                f"77231-{i}",
                f"A{i}",
                f"1.2.{i}",
            )
            dataset.Modality, dataset.ViewPosition = "CR", "PA"
            dataset.Rows = dataset.Columns = 64
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit, dataset.PixelRepresentation = 7, 0
            dataset.PixelData = np.random.default_rng(i).integers(0, 256, 64 * 64, dtype=np.uint8).tobytes()
            path = folder / f"S{i}" / f"IM{i:04d}"
            path.parent.mkdir(parents=True)
            dataset.save_as(path, enforce_file_format=True)
        if columns:
            pd.DataFrame(columns).to_csv(folder / "labels.csv", index=False)
        return folder

    return make


def test_enter_all_the_way_gives_a_site_that_can_be_indexed(hospital):
    site, text, person = interview(hospital(WBC=[8.1, 7.5], Age=[61, 70], ward=["A", "B"]))
    assert site.name == "st-mary-s"
    assert site.data.root.name == "export" and site.data.views == ("AP", "PA")
    assert site.columns.path == "Image" and site.columns.patient == "Patient ID"
    assert site.columns.view == "View Position" and site.columns.age == "Age"
    assert site.labels["effusion"].column == "Pleural Effusion" and site.clinical == {"leukocytes": "WBC"}
    assert "# Columns used for nothing: 'Patient Name', 'ward'" in text
    index, _ = index_site(site)
    assert (index["code"] == "").all() and index["patient"].nunique() == ROWS // 2
    assert index["label.effusion"].mean() == 0.5
    assert len(person.asked) == 8


def test_every_question_shows_its_guess_and_explains_itself(hospital):
    _, _, person = interview(hospital())
    assert "Layout: [table]" in person.asked
    assert "Column of the image files: [Image]" in person.asked
    assert "Column of the patient: [Patient ID]" in person.asked
    assert "Views, with commas, or any: [AP, PA]" in person.asked
    assert "never leaves the site" in person.seen


def test_the_file_can_be_read_in_a_meeting(hospital):
    _, text, _ = interview(hospital())
    keys = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    sections = [line for line in text.splitlines() if line.startswith("[")]
    assert sections == ["[data]", "[columns]", "[labels]"]
    assert all("  # " in line for line in keys if not line.startswith("effusion"))
    assert "set aside if the header says that letters are burnt in" in text
    assert max(map(len, text.splitlines())) <= 110


def test_no_cell_of_the_table_is_ever_shown(hospital):
    names = ["Doe^Jane", "77231", "1.2.840.5.1", "Jane"]
    folder = hospital(
        Consolidation=names, Pneumonia=[1, 0, 1, "Jane Doe"], Mass=["yes", "no", "Doe", "yes"], WBC=names,
        gender=names, age=names, split=names, ICU=names, Survival=names, report=["Jane Doe has nothing"] * 4,
    )  # fmt: skip
    _, text, person = interview(folder)
    suggestion = suggest_text(pd.read_csv(folder / "studies.csv", dtype=str))
    from_cells = suggest_text({k: v.to_numpy(str) for k, v in pd.read_csv(folder / "studies.csv").items()})
    for shown in (text, person.seen, suggestion, from_cells, str(guess_site(folder).remarks)):
        assert not [name for name in PLANTED if name in shown.replace("Patient Name", "")]
    assert "'Consolidation' is not taken for consolidation" in person.seen
    assert "'Mass' is not taken for mass" in person.seen


def test_a_table_without_a_header_is_not_taken_for_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("a.png,Doe^Jane,77231\nb.png,Roe^Joe,77232\n")
    with pytest.raises(ConfigError) as caught:
        guess_site(tmp_path)
    assert "no header row" in str(caught.value)
    assert not [name for name in PLANTED if name in str(caught.value)]


def test_words_are_sorted_into_present_and_absent(hospital):
    site, _, person = interview(
        hospital(
            Pneumonia=["Yes", "No", "unclear", ""],
            Ödem=["x", "y"],
            edema=["1.0", "0", "", ""],
            survived=["Y", "N"],
            went_icu=["ja", "nein"],
        )
    )
    assert site.labels["pneumonia"].positive == ("Yes",) and site.labels["pneumonia"].negative == ("No",)
    assert site.labels["edema"].positive == ()
    # Who survived did not die.
    assert site.labels["mortality"].positive == ("N",) and site.labels["mortality"].negative == ("Y",)
    assert site.labels["icu"].column == "went_icu"
    index, _ = index_site(site)
    assert index["label.pneumonia"].value_counts().to_dict() == {1.0: 10, 0.0: 10}
    assert "pneumonia = 'Pneumonia' (present: Yes; absent: No)" in person.seen


def test_what_a_word_means_is_asked_where_it_is_not_known(hospital):
    folder = hospital(Mass=[2, 3])
    site, _, person = interview(folder, Which_mean_mass=["7", "2"], And_which=["3"])
    assert site.labels["mass"].positive == (2,) and site.labels["mass"].negative == (3,)
    assert "it holds 2, 3" in person.seen
    (folder / "site.toml").unlink()
    assert "mass" not in interview(folder)[0].labels


def test_labels_and_variables_can_be_left_out(hospital):
    site, text, _ = interview(
        hospital(Edema=[0, 1], WBC=[8.0], CRP=[7.0]), Leave_any=["oedema", "effusion", "leukocytes, crp"]
    )
    assert list(site.labels) == ["edema"] and not site.clinical
    assert "'Pleural Effusion', 'WBC', 'CRP'" in text


def test_uncertain_labels_have_no_guess(hospital):
    folder = hospital(Edema=[1, 0, -1, ""], Pneumonia=[1, 0, -1, -1])
    with pytest.raises(ConfigError, match="what -1 counts as for edema, pneumonia"):
        from_guesses(guess_site(folder))
    site, _, person = interview(
        folder, An_uncertain=["", "maybe", "chexpert-5"], And_for_the_other_1=["", "zeros"]
    )
    assert site.uncertainty == {"edema": "ones", "pneumonia": "zeros"}
    assert sum("there is no guess" in line for line in person.told) == 2
    assert "uncertain" not in index_site(site)[0]


def test_each_uncertain_finding_can_be_asked_for(hospital):
    folder = hospital(Edema=[1, -1], Pneumonia=[1, -1])
    site, text, _ = interview(folder, An_uncertain=["each"], edema=["ignore"], pneumonia=["ones"])
    assert site.uncertainty == {"edema": "ignore", "pneumonia": "ones"}
    assert 'edema = "ignore"    # counts as not annotated' in text


def test_an_uncertain_label_in_the_last_row_counts(hospital):
    folder = hospital(Edema=[0] * (ROWS - 1) + [-1])
    assert guess_site(folder).labels[1].uncertain == 1


def test_answers_are_checked_at_once(hospital):
    site, _, person = interview(
        hospital(MRN2=["a"]),
        **{"Site's name": ["North Hospital", "north"], "Column of the patient": ["Patient IDs", "MRN2"]},
    )
    assert site.name == "north" and site.columns.patient == "MRN2"
    assert "lower-case letters" in person.seen and "did you mean 'Patient ID'?" in person.seen


def test_without_a_patient_column_there_is_no_site(hospital):
    folder = hospital()
    frame = pd.read_csv(folder / "studies.csv").rename(columns={"Patient ID": "who"})
    frame.to_csv(folder / "studies.csv", index=False)
    with pytest.raises(ConfigError, match=r"columns\.patient") as caught:
        from_guesses(guess_site(folder))
    assert caught.value.exit_code == 2
    site, _, _ = interview(folder, Column_of_the_patient=["", "who"])
    assert site.columns.patient == "who"


def test_a_patient_that_is_everyone_is_none(hospital):
    guess = guess_site(hospital(**{"Patient ID": ["ANONYMOUS"]}))
    assert "patient" not in guess.columns
    assert "same in every row" in " ".join(guess.remarks)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([f"{i}" for i in range(ROWS)], ""),
        (["a", ""], "empty in 20 rows"),
    ],
)
def test_doubts_about_the_patient_are_said(hospital, cells, said):
    guess = guess_site(hospital(**{"Patient ID": cells}))
    assert guess.columns["patient"] == "Patient ID"
    assert said in " ".join(guess.remarks)


def test_a_table_that_does_not_tell_the_view_uses_every_picture(hospital):
    folder = hospital(**{"View Position": [""]})
    frame = pd.read_csv(folder / "studies.csv").drop(columns="View Position")
    frame.to_csv(folder / "studies.csv", index=False)
    site, _, person = interview(folder)
    assert site.data.views == ()
    assert "does not tell which images are frontal" in person.seen
    assert (index_site(site)[0]["code"] == "").all()


def test_views_of_no_known_name_are_asked_for(hospital):
    folder = hospital(**{"View Position": ["Thorax stehend", "Thorax seitlich"]})
    with pytest.raises(ConfigError, match=r"data\.views"):
        from_guesses(guess_site(folder))
    site, _, person = interview(folder, Views=["", "Thorax stehend"])
    assert site.data.views == ("Thorax stehend",)
    assert "Thorax" not in "\n".join(person.told)


def test_lateral_views_are_not_proposed(hospital):
    folder = hospital(**{"View Position": ["p.a.", "LATERAL", "AP supine", "p.a.", ""]})
    assert guess_site(folder).views == ("P.A.", "AP SUPINE")
    index, _ = index_site(interview(folder)[0])
    assert index["code"].value_counts().to_dict() == {"": 24, "unknown-view": 8, "view": 8}


def test_the_likeliest_table_is_proposed_and_another_can_be_taken(hospital):
    folder = hospital()
    pd.DataFrame({"ward": range(5000), "beds": range(5000)}).to_csv(folder / "aaa.csv", index=False)
    frame = pd.read_csv(folder / "studies.csv").assign(Edema=1)
    frame.to_parquet(folder / "export" / "second.parquet")
    frame.to_csv(folder / "third.csv", index=False)
    assert set(guess_site(folder).tables[:2]) == {"third.csv", "export/second.parquet"}
    site, _, _ = interview(folder, Table=["studies", "export/second.parquet"])
    assert site.data.table.name == "second.parquet" and "edema" in site.labels
    assert (index_site(site)[0]["code"] == "").all()


@pytest.mark.parametrize(
    ("images", "prefix", "root"),
    [
        ("pictures", "", "pictures"),
        ("export/images", "export/images/", "."),
        ("deep/er/images", "images/", "deep/er"),
    ],
)
def test_the_folder_that_paths_start_in_is_found(hospital, images, prefix, root):
    folder = hospital(images, Image=[f"{prefix}{i:03d}.png" for i in range(ROWS)])
    guess = guess_site(folder)
    assert (guess.layout, guess.root, guess.columns["path"]) == ("table", root, "Image")
    assert (index_site(interview(folder)[0])[0]["code"] == "").all()


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda i: f"images\\{i:03d}.png", "replace it by /"),
        (lambda i: f"/mnt/x/{i:03d}.png", "absolute"),
        (lambda i: f"elsewhere/{i}.png", "none of the files"),
        (lambda i: f"images/{i if i < 30 else i + 1000:03d}.png", "25 % of the files"),
    ],
)
def test_paths_that_lead_nowhere_are_pointed_out(hospital, write, said):
    guess = guess_site(hospital(Image=[write(i) for i in range(ROWS)]))
    assert said in " ".join(guess.remarks)
    assert guess.layout == "table" and guess.columns["path"] == "Image"


def test_file_names_in_many_folders_are_joined(hospital):
    folder = hospital(Image=[f"{i:03d}.png" for i in range(ROWS)])
    for i in range(ROWS):
        (folder / f"export/s{i}").mkdir()
        (folder / f"export/images/{i:03d}.png").rename(folder / f"export/s{i}/{i:03d}.png")
    site, _, _ = interview(folder)
    assert (site.data.layout, site.data.join, site.columns.file) == ("folder", "file", "Image")
    assert (index_site(site)[0]["code"] == "").all()


def test_a_folder_of_dicom_files_needs_no_table(dicom):
    site, _, person = interview(dicom(), **{"Burnt-in": ["accept"]})
    assert (site.data.layout, site.data.table, site.data.burned_in) == ("folder", None, "accept")
    assert "may be a name" in person.seen
    assert len(index_site(site)[0]) == 4
    assert load_site(site.data.root / "site.toml") == site


@pytest.mark.parametrize(
    ("columns", "join"),
    [
        ({"Accession Number": ["A0", "A1"], "Edema": [1, 0]}, "accession"),
        ({"StudyInstanceUID": ["1.2.0", "1.2.1"], "Edema": [1, 0]}, "study"),
        ({"MRN": ["77231-0", "77231-1"], "Edema": [1, 0]}, "patient"),
        ({"MRN": ["77231-0", "77231-1"], "ACCESSION_NO": ["A0", "A1"], "Edema": [1, 0]}, "accession"),
    ],
)
def test_labels_are_joined_to_dicom_files(dicom, columns, join):
    folder = dicom(**columns)
    (folder / "site.toml").write_text(from_guesses(guess_site(folder)))
    site = load_site(folder / "site.toml")
    assert (site.data.layout, site.data.join) == ("folder", join)
    index, _ = index_site(site)
    assert (index["code"] == "").all()
    assert sorted(index["label.edema"].dropna()) == [0.0, 1.0]


def test_a_table_of_something_else_is_not_joined(dicom):
    folder = dicom(ward=["A"], beds=[3])
    guess = guess_site(folder)
    assert (guess.layout, guess.table, guess.tables) == ("folder", "", ("labels.csv",))
    assert "labels.csv names neither" in " ".join(guess.remarks)
    assert "Table of labels, - for none (labels.csv): [-]" in interview(folder)[2].asked


def test_an_index_written_earlier_is_no_table(hospital):
    folder = hospital()
    (folder / "state/index").mkdir(parents=True)
    pd.read_csv(folder / "studies.csv").to_parquet(folder / "state/index/index.parquet")
    assert guess_site(folder).tables == ("studies.csv",)


def test_files_without_suffix_can_be_named_by_a_table(dicom):
    folder = dicom(file=[f"S{i}/IM{i:04d}" for i in range(4)], MRN=[*"abcd"], Edema=[1, 0, 1, 0])
    guess = guess_site(folder)
    assert (guess.layout, guess.columns["path"], guess.dicom, guess.pictures) == (
        "table",
        "file",
        True,
        False,
    )
    (folder / "site.toml").write_text(from_guesses(guess))
    assert (index_site(load_site(folder / "site.toml"))[0]["code"] == "").all()


PUBLIC = {
    "nih": ("Data_Entry_2017.csv", "Image Index,Finding Labels"),
    "chexpert": ("train.csv", "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema"),
    "mimic": ("mimic-cxr-2.0.0-metadata.csv", "dicom_id,subject_id,study_id"),
    "padchest": (padchest.TABLE, "ImageID,PatientID"),
    "vindr": ("annotations/image_labels_train.csv", "image_id,rad_id"),
    "rsna": ("stage_2_train_labels.csv", "patientId,x,y,width,height,Target"),
    "siim": ("train-rle.csv", "ImageId,EncodedPixels"),
    "openi": ("NLMCXR_reports.tgz", "?"),
    "covid": ("metadata.csv", "patientid,offset,sex,age,finding,survival,filename,clinical_notes"),
}


@pytest.mark.parametrize("layout", PUBLIC)
@pytest.mark.parametrize("below", ["", "download/set"])
def test_a_public_set_is_known_by_its_table(tmp_path, layout, below):
    name, header = PUBLIC[layout]
    file = tmp_path / below / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{header}\n{','.join('a' for _ in header.split(','))}\n")
    guess = guess_site(tmp_path)
    assert (guess.layout, guess.root) == (layout, below or ".")
    person = Person(An_uncertain=["ignore"], **{"Site's name": ["north"]})
    (tmp_path / "site.toml").write_text(ask(guess, person.answer, person.tell))
    site = load_site(tmp_path / "site.toml")
    assert site.data.layout == layout and site.data.root == tmp_path / below
    assert (len(site.uncertainty) == 13) == (layout in ("chexpert", "mimic"))


def test_every_public_layout_is_tried():
    assert PUBLIC.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", ["train.csv", "metadata.csv"])
def test_a_common_name_alone_is_no_public_set(hospital, name):
    assert guess_site(hospital(table=name)).layout == "table"


def test_the_layout_guessed_can_be_refused(hospital):
    folder = hospital(table="train-rle.csv")
    assert guess_site(folder).layout == "siim"
    site, _, _ = interview(folder, Layout=["tabel", "table"])
    assert site.data.layout == "table" and site.columns.patient == "Patient ID"
    site, _, _ = interview(folder, Layout=["chexpert"], An_uncertain=["zeros"])
    assert len(site.uncertainty) == 13 and not site.labels


def test_a_table_over_images_can_serve_a_folder(hospital):
    folder = hospital(file=[f"{i:03d}.png" for i in range(ROWS)])
    site, text, _ = interview(
        folder,
        Layout=["folder"],
        Table=["studies.csv"],
        Joined_by=["", "file"],
        **{"Column of the file": ["", "file"]},
    )
    assert (site.data.layout, site.data.join, site.columns.file) == ("folder", "file", "file")
    assert "path =" not in text
    assert (index_site(site)[0]["code"] == "").all()


def test_a_list_of_findings_in_one_cell_is_pointed_out(hospital):
    folder = hospital(**{"Finding Labels": ["Edema|Effusion", "No Finding", "Mass", "Hernia"]})
    assert "'Finding Labels' lists several findings" in " ".join(guess_site(folder).remarks)


def test_another_unit_is_pointed_out(hospital):
    guess = guess_site(hospital(Temp=[99.1, 101.2]))
    assert not guess.clinical
    assert "'Temp' is not taken for temperature" in " ".join(guess.remarks)


def test_a_split_that_is_none_is_not_used(hospital):
    assert "split" not in guess_site(hospital(Partition=["A", "B"])).columns
    guess = guess_site(hospital("b/c", Partition=["train", "val", "test", "train"]))
    assert guess.columns["split"] == "Partition"


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["PatientID", "patient_id", "Patient ID", "MRN", "subject_id", "NHC"], "patient"),
        (["Patienten-ID", "患者ID", "Patienten_Nr", "ID Paziente", "IPP"], "patient"),
        (["dicom.PatientID", "(0010,0020) PatientID"], "patient"),
        (["StudyInstanceUID", "study_id", "Exam ID", "0020000D_StudyInstanceUID"], "study"),
        (["AccessionNumber", "Accession_No", "ACC"], "accession"),
        (["ViewPosition", "View", "Projection", "Proyección", "AP/PA", "Strahlengang"], "view"),
        (["PatientSex", "Gender", "Geschlecht", "sexo", "Patient Gender", "Пол"], "sex"),
        (["Age", "Patient Age", "edad", "Alter", "âge", "Age (years)"], "age"),
    ],
)  # fmt: skip
def test_columns_are_known_by_many_names(names, role):
    for name in names:
        assert by_name(["ward", name, "notes"]).get(role) == name, name
    assert by_name(["ward", "notes", "impatient", "viewer", "manager"]) == {}


def test_the_usual_name_wins_over_a_rare_one():
    assert by_name(["subject", "PatientID", "MRN"])["patient"] == "PatientID"


def test_the_walk_is_bounded_and_follows_no_link_out(tmp_path, monkeypatch):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside, inside / "images"):
        folder.mkdir(parents=True)
    (outside / "secret.csv").write_text("path,patient\na.png,b\n")
    (inside / "a.csv").symlink_to(outside / "secret.csv")
    (inside / "more").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "ok.csv").symlink_to(inside / "images" / "000")
    for i in range(300):
        (inside / "images" / f"{i:03d}").write_text("")
    tree = guess_files.look(inside)
    assert tree.whole and "a.csv" not in tree.files and "ok.csv" in tree.files
    assert tree.folders == ("images",) and len(tree.files) == 301
    monkeypatch.setattr(guess_files, "MOST_ENTRIES", 50)
    tree = guess_files.look(inside)
    assert not tree.whole and len(tree.files) + len(tree.folders) <= 50


def test_a_folder_too_full_does_not_hide_its_neighbours(hospital, monkeypatch):
    monkeypatch.setattr(guess_files, "MOST_PER_FOLDER", 5)
    folder = hospital("a/images", table="a/images/zzz.csv")
    (folder / "b").mkdir()
    (folder / "a/images/zzz.csv").rename(folder / "b/studies.csv")
    guess = guess_site(folder)
    assert not guess.tree.whole
    assert (guess.table, guess.root, guess.located) == ("b/studies.csv", "a", True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"path;patient\na.png;b\n", "not separated by commas"),
        ("a.csv", b"", "not a CSV"),
        ("a.csv", "path,patient\nä.png,b\n".encode("utf-16"), "not a CSV"),
        ("a.parquet", b"PAR1 not", "not a CSV"),
        ("a.csv.gz", b"\x1f\x8b nonsense", "not a CSV"),
        ("a.xlsx", b"PK", "1 spreadsheet not read"),
    ],
)
def test_a_table_that_cannot_be_read_is_said(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        guess_site(tmp_path)
    assert said in str(caught.value)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        guess_site(tmp_path / "nowhere")


def test_names_that_would_break_a_toml_file_do_not(hospital):
    evil = 'Patient ID"]\n[data]\nroot = "/" # \\'
    folder = hospital()
    frame = pd.read_csv(folder / "studies.csv").rename(columns={"Patient ID": evil})
    frame.assign(**{'x"\n[device]\nname = "cuda"': 1, "\x1b[31m": 2}).to_csv(
        folder / "studies.csv", index=False
    )
    site, text, _ = interview(folder, Column_of_the_patient=[evil.strip()])
    assert site.columns.patient == evil.strip()
    assert site.data.root.name == "export" and site.device.name == "auto"
    assert "\x1b" not in text


def test_suggestions_name_what_could_not_be_placed():
    text = suggest_text(
        ["PatientID", "path", "Pleural_Effusion", "edema", "pO2", "Age", "ward", "No Finding"]
    )
    assert 'path = "path"' in text and 'patient = "PatientID"' in text
    assert 'effusion = "Pleural_Effusion"' in text
    assert 'oxygen_pressure = "pO2"  # mmHg' in text
    assert "# Columns used for nothing: 'ward', 'No Finding'" in text


def test_suggestions_look_at_the_cells_where_there_are_any():
    text = suggest_text(
        {"Mass": np.array(["Yes", "No"]), "Edema": np.array(["Doe", "Roe"]), "WBC": np.array(["8", "7"])}
    )
    assert 'mass = { column = "Mass", positive = ["Yes"], negative = ["No"] }' in text
    assert "# column 'Edema' is not taken for edema" in text and "Doe" not in text


def described(folder, typed=None, **options):
    console = Console(file=io.StringIO(), width=80)
    if typed is not None:
        lines = iter(typed)

        def type_line(prompt="", **_):
            console.print(prompt)
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        console.input = type_line
    return describe_site(folder, console, **options), console.file.getvalue()


def test_a_terminal_leads_to_a_file(hospital):
    folder = hospital()
    file, shown = described(folder, [""] * 20)
    assert file == folder / "site.toml" and file.stat().st_mode & 0o777 == 0o644
    assert "Column of the patient: [Patient ID]" in shown and "site.toml is written" in shown
    with pytest.raises(ConfigError, match="already"):
        described(folder, [""] * 20)


def test_guesses_alone_lead_to_the_same_file(hospital):
    folder = hospital(Mass=[2, 3])
    file, shown = described(folder, take_guesses=True)
    guessed = file.read_text()
    assert "'Mass' is left out" in shown
    file.unlink()
    described(folder, [""] * 20)
    assert file.read_text() == guessed


def test_answers_that_end_early_leave_no_file(hospital):
    folder = hospital()
    with pytest.raises(ConfigError, match="ended before"):
        described(folder, ["", ""])
    assert not (folder / "site.toml").exists()


def test_a_folder_that_may_not_be_read_is_passed_over(hospital):
    folder = hospital()
    (folder / "private").mkdir(mode=0)
    try:
        assert guess_site(folder).table == "studies.csv"
    finally:
        os.chmod(folder / "private", 0o700)


def test_a_broken_table_is_an_error_of_ours_not_a_traceback(hospital):
    folder = hospital()
    with (folder / "studies.csv").open("a") as stream:
        stream.write("".join("x,y,z,a,b\n" for _ in range(300)) + "too,many,fields,in,this,row,here\n")
    with pytest.raises(TableError) as caught:
        guess_site(folder)
    assert isinstance(caught.value, FedcxrError)


def test_a_column_of_reports_is_looked_at_like_any_other(hospital):
    long = ["Heart size is normal. " * 40] * ROWS
    folder = hospital(
        MRN=[f"m{i}" for i in range(ROWS)], view=["PA"] * ROWS, report=long, Edema=[0, 1] * (ROWS // 2)
    )
    settings, text, _ = interview(folder)
    assert settings.columns.report == "report" and "Heart" not in text
    assert 'report = "report"' in suggest_text(read_columns(folder / "studies.csv"))
