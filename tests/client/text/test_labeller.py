from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.text.labeller import label_report
from common.findings import FINDINGS as VOCABULARY
from simulations.phantom.cases import FINDINGS, Cases
from simulations.phantom.report import Report

SENTENCES = {
    # lists and their ends
    "No effusion, pneumothorax or consolidation.": {"effusion": 0, "pneumothorax": 0, "consolidation": 0},
    "No pneumothorax, large effusion, or edema.": {"pneumothorax": 0, "effusion": 0, "edema": 0},
    "No effusion, cardiomegaly is present.": {"effusion": 0, "cardiomegaly": 1},
    "No effusion and the heart is enlarged.": {"effusion": 0, "cardiomegaly": 1},
    "No effusion; edema.": {"effusion": 0, "edema": 1},
    "No pneumothorax but small effusion.": {"pneumothorax": 0, "effusion": 1},
    "Without edema, however there is a pleural\neffusion.": {"edema": 0, "effusion": 1},
    "Atelectasis without effusion": {"atelectasis": 1, "effusion": 0},
    "Atelectasis, no effusion": {"atelectasis": 1, "effusion": 0},
    "NO PLEURAL\nEFFUSION.": {"effusion": 0},
    # denial behind
    "Effusion is not seen.": {"effusion": 0},
    "Effusion, edema, or fracture is not identified.": {"effusion": 0, "edema": 0, "fracture": 0},
    "The pneumothorax has resolved.": {"pneumothorax": 0},
    "Pneumonia was ruled out.": {"pneumonia": 0},
    "Edema is no longer seen, effusion unchanged.": {"edema": 0, "effusion": 1},
    "There is no longer any effusion.": {"effusion": 0},
    "The chest tube has been removed.": {"support_device": 0},
    "Free of consolidation; negative for edema.": {"consolidation": 0, "edema": 0},
    "The heart is not enlarged.": {"cardiomegaly": 0},
    # what only looks like denial
    "No change in effusion.": {"effusion": 1},
    "No significant interval increase in the effusion.": {"effusion": 1},
    "Effusions have not changed.": {"effusion": 1},
    "Effusion is not excluded.": {"effusion": -1},
    "Pneumonia cannot be entirely excluded.": {"pneumonia": -1},
    # doubt
    "Possible pneumonia.": {"pneumonia": -1},
    "Cannot exclude pneumonia.": {"pneumonia": -1},
    "Findings suspicious for pneumonia.": {"pneumonia": -1},
    "Questionable nodule.": {"nodule": -1},
    "Opacity may be atelectasis versus pneumonia.": {"lung_opacity": 1, "atelectasis": -1, "pneumonia": -1},
    "There is possible mild cardiomegaly.": {"cardiomegaly": -1},
    "Small effusion is suspected.": {"effusion": -1},
    "No opacity to suggest pneumonia.": {"lung_opacity": 0, "pneumonia": 0},
    "Heart size at the upper limits of normal.": {"cardiomegaly": -1},
    # normal statements
    "Normal heart size.": {"cardiomegaly": 0},
    "Heart size is within normal limits.": {"cardiomegaly": 0},
    "Clear lungs.": {"consolidation": 0},
    "The lungs are grossly clear.": {"consolidation": 0, "lung_opacity": 0},
    "Costophrenic angles are sharp.": {"effusion": 0},
    "Pulmonary vascularity is normal.": {"edema": 0},
    # several sentences
    "Possible effusion. No effusion.": {"effusion": -1},
    "No effusion. Possible effusion. Small effusion.": {"effusion": 1},
    # one from another
    "Blunting of the left costophrenic angle.": {"costophrenic_angle_blunting": 1, "effusion": -1},
    "Blunted costophrenic angles. No effusion.": {"costophrenic_angle_blunting": 1, "effusion": 0},
    "Pulmonary nodule.": {"nodule": 1, "nodule_or_mass": 1, "lung_lesion": 1},
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SENTENCES.items())
def test_sentences(text: str, expected: dict[str, int]) -> None:
    found = label_report(text)
    assert {finding: found.get(finding) for finding in expected} == expected


@pytest.mark.parametrize(
    "text",
    ["", "Normal chest.", "History of pneumonia.", "INDICATION: Rule out pneumonia. FINDINGS: Normal chest.",
     "COMPARISON: Old effusion.", "Pericardial effusion."],
)  # fmt: skip
def test_what_is_not_said_is_not_labelled(text: str) -> None:
    assert not {"pneumonia", "effusion"} & label_report(text).keys()


@given(st.lists(st.sampled_from([*SENTENCES, "history", ",", "and", "no"]), max_size=5).map(" ".join))
def test_labels_are_of_the_vocabulary_and_case_does_not_matter(text: str) -> None:
    labels = label_report(text)
    assert labels.keys() <= set(VOCABULARY) and set(labels.values()) <= {-1, 0, 1}
    assert label_report(text.upper()) == labels


HEDGE = re.compile(r"\b(possible|probable|questionable|suspected)\b", re.IGNORECASE)
WORDS = {"cardiomegaly": "cardiomegaly", "nodule": "nodule", "support_device": "place|projecting|device"}


def test_phantom_reports_are_read_as_they_were_meant(
    cases: Cases, reports: list[Report], whole: Callable[[Report], str]
) -> None:
    """Present, denied and hedged as written; typing errors included."""
    wrong = hedged = 0
    for row, report in enumerate(reports):
        labels = label_report(whole(report))
        for j, finding in enumerate(FINDINGS):
            about = [
                sentence
                for sentence in re.split(r"(?<=\.)\s+", f"{report.findings} {report.impression}")
                if re.search(WORDS.get(finding, finding), sentence, re.IGNORECASE)
            ]
            if cases.labels[row, j]:
                expected = -1 if all(HEDGE.search(sentence) for sentence in about) else 1
                hedged += expected == -1
                wrong += labels.get(finding) != expected
            else:
                wrong += labels.get(finding, 0) != 0
    assert hedged > 10
    assert wrong <= 0.005 * len(reports) * len(FINDINGS)
