"""What a table's columns are taken for, by their names and their cells, and what is said of doubts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from client.data.index import index_site
from client.setup.guess import guess_site
from client.setup.guess_columns import by_name
from client.setup.questions import suggest_text
from tests.client.setup.person import ROWS, interview


def test_an_uncertain_label_in_the_last_row_counts(hospital):
    folder = hospital(Edema=[0] * (ROWS - 1) + [-1])
    assert guess_site(folder).labels[1].uncertain == 1


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


def test_lateral_views_are_not_proposed(hospital):
    folder = hospital(**{"View Position": ["p.a.", "LATERAL", "AP supine", "p.a.", ""]})
    assert guess_site(folder).views == ("P.A.", "AP SUPINE")
    index, _ = index_site(interview(folder)[0])
    assert index["code"].value_counts().to_dict() == {"": 24, "unknown-view": 8, "view": 8}


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
