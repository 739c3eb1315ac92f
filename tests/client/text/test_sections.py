from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.text.sections import sections, sentences, split_report

PIECES = st.sampled_from(
    ["INDICATION:", "History: ", "findings:", "IMPRESSION\n", "Comparison: none.", "LUNGS:", "Heart: ",
     "cough", " effusion", ". ", "\n", "\n\n", "1. ", "vs. ", "1.5 cm", "prior study: ", "-", "Dr. "]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=20).map("".join) | st.text(max_size=60)


@given(TEXTS, st.sampled_from(["report", "indication", "findings"]))
def test_sections_and_sentences_cover_the_text_without_a_gap(text: str, field: str) -> None:
    parts = sections(text, field)
    assert "".join(text[part.start : part.end] for part in parts) == text
    assert all(part.start <= part.body <= part.end for part in parts)
    assert "".join(text[start:end] for start, end in sentences(text)) == text


def test_headings_in_any_case_and_by_any_usual_name() -> None:
    assert split_report(
        "Two views\nCLINICAL INFORMATION: Cough\nfindings: Heart enlarged.\n\nConclusion\n1. Big heart."
    ) == {
        "body": "Two views",
        "indication": "Cough",
        "findings": "Heart enlarged.",
        "impression": "1. Big heart.",
    }
    assert split_report("HISTORY: Fall. COMPARISON: None. Findings and impression: Clear.") == {
        "indication": "Fall.",
        "comparison": "None.",
        "findings": "Clear.",
    }


@pytest.mark.parametrize(
    "text",
    [
        "Indication: cough FINDINGS: effusion",
        "Indication: cough findings: effusion",
        "Indication: cough\nLUNGS: effusion",
        "Indication: cough\nHeart and lungs: effusion",
        "Indication: cough. PORTABLE CHEST: effusion",
        "History/Findings: cough, effusion",
        "effusion",
        "effusion was found in this patient with a history: smoking",
    ],
)
def test_a_description_is_never_taken_for_the_request(text: str) -> None:
    assert "effusion" not in split_report(text).get("indication", "")


def test_words_within_a_sentence_are_no_headings() -> None:
    text = "FINDINGS: Compared to the prior study: larger effusion. No views: of the past."
    assert list(split_report(text)) == ["findings"]


def test_an_unlisted_heading_stays_in_its_description() -> None:
    assert split_report("FINDINGS: HEART: Normal. LUNGS: Clear.") == {
        "findings": "HEART: Normal. LUNGS: Clear."
    }


def test_the_same_field_twice_is_one() -> None:
    assert (
        split_report("FINDINGS: Edema. IMPRESSION: Edema. FINDINGS: Nodule.")["findings"] == "Edema.\nNodule."
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("No effusion. No edema.", 2),
        ("Nodule of 1.2 cm vs. scar. Edema.", 2),
        ("1. Edema. 2. Effusion.", 2),
        ("No pleural\neffusion", 1),
        ("NO PLEURAL\nEFFUSION.", 1),
        ("Heart: normal\nLungs: clear", 2),
        ("Edema\n- effusion\n- nodule", 3),
        ("effusion.The heart is large", 2),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count
