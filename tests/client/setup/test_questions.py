"""A site.toml by questions: good guesses, no cell of a table shown, and a file that loads and indexes."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from client.data.columns import read_columns
from client.data.index import index_site
from client.setup.guess import guess_site
from client.setup.questions import describe_site, from_guesses, suggest_text
from common.errors import ConfigError
from tests.client.setup.person import PLANTED, ROWS, interview


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


def test_views_of_no_known_name_are_asked_for(hospital):
    folder = hospital(**{"View Position": ["Thorax stehend", "Thorax seitlich"]})
    with pytest.raises(ConfigError, match=r"data\.views"):
        from_guesses(guess_site(folder))
    site, _, person = interview(folder, Views=["", "Thorax stehend"])
    assert site.data.views == ("Thorax stehend",)
    assert "Thorax" not in "\n".join(person.told)


def test_the_layout_guessed_can_be_refused(hospital):
    folder = hospital(table="train-rle.csv")
    assert guess_site(folder).layout == "siim"
    site, _, _ = interview(folder, Layout=["tabel", "table"])
    assert site.data.layout == "table" and site.columns.patient == "Patient ID"
    site, _, _ = interview(folder, Layout=["chexpert"], An_uncertain=["zeros"])
    assert len(site.uncertainty) == 13 and not site.labels


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


def test_a_column_of_reports_is_looked_at_like_any_other(hospital):
    long = ["Heart size is normal. " * 40] * ROWS
    folder = hospital(
        MRN=[f"m{i}" for i in range(ROWS)], view=["PA"] * ROWS, report=long, Edema=[0, 1] * (ROWS // 2)
    )
    settings, text, _ = interview(folder)
    assert settings.columns.report == "report" and "Heart" not in text
    assert 'report = "report"' in suggest_text(read_columns(folder / "studies.csv"))
