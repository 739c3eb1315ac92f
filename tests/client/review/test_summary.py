"""The summary counts what pandas counts, flags what is wrong and names nobody."""

from __future__ import annotations

import io
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from client.data.reasons import CAUSES
from client.review.summary import AGE_BANDS, MIN_CELL, Counts, age_bands, plain, summarise
from client.review.words import headline, not_asked, notices, percent, render
from client.site import EvaluateConfig

SPLITS = ("train", "validation", "test")


def shown(summary, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render(summary))
    return console.file.getvalue()


def table(**columns):
    """An index of a few rows; what is not given is empty."""
    rows = max((len(cells) for cells in columns.values()), default=0)
    empty = {name: [""] * rows for name in ("path", "study", "view", "sex", "scanner", "code")}
    base = {**empty, "patient": [f"p{i}" for i in range(rows)], "split": ["train"] * rows}
    frame = pd.DataFrame({**base, "age": np.full(rows, np.nan, np.float32)} | columns)
    return frame.astype(dict.fromkeys(base, object))


def test_totals_and_splits_are_those_of_pandas(make_index):
    index = make_index()
    summary = summarise(index, "north")
    index["exam"] = np.where(
        index["study"] == "",
        [f"own {i}" for i in range(len(index))],
        index["patient"] + "/" + index["study"],
    )

    def counts(frame):
        return Counts(len(frame), frame["exam"].nunique(), frame["patient"].nunique())

    usable = index[index["code"] == ""]
    assert summary.total == counts(index)
    assert summary.usable == counts(usable)
    assert summary.splits == {name: counts(usable[usable["split"] == name]) for name in SPLITS}
    assert sum(part.images for part in summary.splits.values()) == summary.usable.images


def test_findings_are_counted_on_usable_images_only(make_index):
    index = make_index()
    usable = index[index["code"] == ""]
    summary = summarise(index, "north")
    assert [finding.name for finding in summary.findings] == ["effusion", "pneumothorax", "covid", "hernia"]
    for finding in summary.findings:
        labels = usable[f"label.{finding.name}"]
        assert (finding.positive, finding.negative) == ((labels == 1).sum(), (labels == 0).sum())
        assert finding.positives == {n: ((usable["split"] == n) & (labels == 1)).sum() for n in SPLITS}
        assert finding.annotated == labels.notna().sum()
    assert summary.findings[0].prevalence == pytest.approx(usable["label.effusion"].mean())
    assert summary.findings[3].prevalence is None


def test_groups_add_up_to_the_usable_images(make_index):
    index = make_index()
    usable = index[index["code"] == ""]
    summary = summarise(index, "north")
    for groups in (summary.views, summary.sexes, summary.ages, summary.scanners):
        assert sum(group.images for group in groups) == len(usable)
        assert sum(group.share for group in groups) == pytest.approx(1)
    assert {g.name: g.images for g in summary.views} == dict(
        usable["view"].replace("", "unknown").value_counts()
    )
    bands = pd.cut(usable["age"], [-1, 18, 40, 60, 80, 200], right=False, labels=AGE_BANDS)
    assert {g.name: g.images for g in summary.ages if g.name != "unknown"} == dict(bands.value_counts())
    assert summary.ages[-1].images == usable["age"].isna().sum()


def test_clinical_variables_are_summed_up(make_index):
    index = make_index()
    values = index.loc[index["code"] == "", "clinical.temperature"]
    temperature, crp = summarise(index, "north").clinical
    assert (temperature.name, temperature.unit, temperature.present) == (
        "temperature",
        "°C",
        values.notna().sum(),
    )
    assert temperature.missing == pytest.approx(values.isna().mean())
    assert temperature.median == pytest.approx(values.median())
    assert temperature.range == pytest.approx((values.min(), values.max()))
    assert (crp.present, crp.missing, crp.median, crp.range) == (0, 1.0, None, None)


def test_what_is_set_aside_has_its_meaning_and_faults_come_first(make_index):
    index = make_index(600)
    summary = summarise(index, "north")
    assert [(part.code, part.images, part.fault) for part in summary.set_aside] == [
        ("truncated", 30, True),
        ("near-duplicate", 10, True),
        ("view", 20, False),
    ]
    assert all((part.meaning, part.remedy) == CAUSES[part.code][:2] for part in summary.set_aside)
    assert (summary.faults, summary.not_asked) == (40, 20)
    assert headline(summary) == "40 of 600 images are set aside: 30 truncated and 10 near-duplicate."
    assert not_asked(summary) == "Not asked for, and no fault: 20 view."


def test_every_code_can_be_summed_up():
    summary = summarise(table(code=[*CAUSES, ""]), "north")
    assert {part.code for part in summary.set_aside} == set(CAUSES)


def test_the_same_study_number_at_two_patients_is_two_studies():
    index = table(patient=["a", "a", "b", "b"], study=["1", "1", "1", ""])
    assert summarise(index, "north").usable == Counts(images=4, studies=3, patients=2)


@pytest.mark.parametrize(
    ("labels", "splits", "flags"),
    [
        ([np.nan] * 4, ["train"] * 4, ("not annotated",)),
        ([1.0] * 4, ["train"] * 4, ("only one class",)),
        ([0.0] * 4, ["train"] * 4, ("only one class",)),
        (
            [1, 1, 0, 0],
            ["train", "train", "test", "test"],
            ("one class in train", "fewer than 2 positives in test"),
        ),
        ([1, 0, 1, 1, 0], ["train", "train", "test", "test", "test"], ("fewer than 2 negatives in test",)),
        ([1, 0, 1, 1, 0, 0], ["train", "train", "test", "test", "test", "test"], ()),
    ],
)
def test_a_finding_that_cannot_be_learned_or_measured_is_flagged(labels, splits, flags):
    index = table(split=splits, **{"label.mass": np.array(labels, np.float32)})
    assert summarise(index, "north", min_cell=2).findings[0].flags == flags


def test_a_scanner_that_gives_a_finding_away_is_flagged():
    sick, well = ["GE"] * 90 + ["Agfa"] * 10, ["GE"] * 30 + ["Agfa"] * 70
    index = table(scanner=sick + well, **{"label.covid": np.repeat([1.0, 0.0], 100)})
    index["split"] = ["train", "test"] * 100
    # Youden index of "it is a GE": 0.9 - 0.3
    assert summarise(index, "north").findings[0].flags == ("follows the scanner",)
    assert "The scanner alone tells" in " ".join(notices(summarise(index, "north")))
    even = index.assign(scanner=["GE", "Agfa"] * 100)
    assert summarise(even, "north").findings[0].flags == ()


def test_many_scanners_do_not_follow_by_chance():
    rng = np.random.default_rng(0)
    scanner = [f"scanner {i}" for i in rng.integers(0, 30, 200)]
    index = table(scanner=scanner, **{"label.mass": rng.integers(0, 2, 200).astype(np.float32)})
    index["split"] = ["train", "test"] * 100
    assert summarise(index, "north").findings[0].flags == ()


def test_attention_is_drawn_to_what_is_wrong(make_index):
    index = make_index()
    index.loc[500:503, "scanner"] = "Rare One"
    said = " ".join(notices(summarise(index.assign(split="train"), "north")))
    assert "No image is in validation and test." in said
    assert "annotated for hernia" in said and "occurs for covid" in said
    assert "1 scanner made less than 1 % of the images: Rare One (4)." in said
    assert "temperature" in said and "crp (100 %)" in said


def test_all_well_says_so():
    index = table(
        split=["train", "train", "validation", "test", "test"],
        age=[50.0] * 5, sex=["M"] * 5, view=["PA"] * 5,
        **{"label.mass": [1.0, 0, 1, 1, 0]},
    )  # fmt: skip
    summary = summarise(index, "north", min_cell=1)
    assert headline(summary) == "All 5 images can be used."
    assert notices(summary) == ()


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_image_is_no_fault_of_ours(make_index, rows):
    index = make_index(60).head(rows)
    assert headline(summarise(index, "north")).startswith("No image can be used: 1 t" if rows else "The inde")
    assert shown(summarise(index, "north"))


def test_no_patient_study_or_file_is_in_the_summary(make_index, planted_names):
    index = make_index()
    # A column of names taken for the views: 200 of them are a mistake, and are not shown.
    index["view"], index["scanner"] = index["patient"], index["path"]
    summary = summarise(index, "north")
    for text in (shown(summary), shown(summary, 200), headline(summary), *notices(summary)):
        assert not [name for name in planted_names if name in text]
    assert "read from the right column" in " ".join(notices(summary))
    assert not [name for name in planted_names if name in repr(astuple(summary))]


def test_the_terminal_is_never_wider_than_told_and_shows_every_number(make_index):
    index = make_index()
    index["label.enlarged_cardiomediastinum"] = index["label.effusion"]
    index.loc[450:, "scanner"] = "A manufacturer of a name " * 6
    text = shown(summarise(index, "north"))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    row = next(line for line in text.splitlines() if line.startswith("enlarged_cardiomediastinum"))
    finding = summarise(index, "north").findings[-1]
    assert row.split()[1:3] == [str(finding.positive), str(finding.negative)]
    assert [int(n) for n in row.split()[-3:]] == list(finding.positives.values())
    assert "…" not in text.replace("name …", "").split("of the usable")[0]


def test_markup_and_control_characters_reach_no_terminal(make_index):
    index = make_index()
    index.loc[450:, "scanner"] = "[bold red]GE[/] \x1b[31m\u202e\x07"
    text = shown(summarise(index, "north"))
    assert "[bold red]GE[/]" in text
    assert not set("\x1b\x07\u202e") & set(text)


def test_ages_stand_in_their_band():
    ages = np.array([0, 17.99, 18, 39.5, 40, 59.9, 60, 79, 80, 119, np.nan])
    assert age_bands(ages).tolist() == [
        "<18", "<18", "18-39", "18-39", "40-59", "40-59", "60-79", "60-79", "80+", "80+", "unknown",
    ]  # fmt: skip


def test_no_share_is_rounded_to_none_or_all():
    assert [percent(x) for x in (0, 1e-9, 0.5, 1 - 1e-9, 1)] == [
        "0 %",
        "<0.1 %",
        "50.0 %",
        ">99.9 %",
        "100 %",
    ]


def test_plain_text_is_short_and_printable():
    assert plain("a\nb\x00c\u2028d\ud800") == "a?b?c d?"
    assert len(plain("x" * 500)) == 60


def test_the_threshold_is_the_site_s():
    assert EvaluateConfig().min_cell == MIN_CELL
