"""The table and layout a folder is taken for: pictures, DICOM files, public sets; what cannot be read."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from client.data.index import index_site
from client.data.public import padchest
from client.data.public.layouts import LAYOUTS
from client.setup import guess_files
from client.setup.guess import guess_site
from client.setup.interview import ask
from client.setup.questions import from_guesses
from client.site import load_site
from common.errors import ConfigError, FedcxrError, TableError
from tests.client.setup.person import PLANTED, ROWS, Person, interview


def test_a_table_without_a_header_is_not_taken_for_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("a.png,Doe^Jane,77231\nb.png,Roe^Joe,77232\n")
    with pytest.raises(ConfigError) as caught:
        guess_site(tmp_path)
    assert "no header row" in str(caught.value)
    assert not [name for name in PLANTED if name in str(caught.value)]


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
