from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.site import Redaction
from client.text.redaction import MODES, Redacted, Unit, redact, survivors
from common.errors import ConfigError
from simulations.phantom.cases import sample_cases
from simulations.phantom.report import write_reports

PHANTOMS = [
    f"INDICATION: {r.indication}\nFINDINGS: {r.findings}\nIMPRESSION: {r.impression}"
    for r in write_reports(sample_cases(60, seed=5))
]
VOCABULARY = (
    "pleural effusion fluid EFFUSIONS heart is enlarged mildly no normal acute cardio megaly cardiomegaly"
    " history: Findings: INDICATION: LUNGS: of cough fever air space disease pneumo thorax - . , ( ) 1."
    " nodule/mass tb within limits Ünïcode İ ﬁ collapse"
)
WORDS = st.sampled_from([*VOCABULARY.split(), "\n", "x" * 80])
TEXTS = st.lists(WORDS, max_size=25).map(" ".join) | st.sampled_from(PHANTOMS) | st.text(max_size=80)
FIELDS = st.sampled_from(["report", "indication", "findings", "impression"])
UNITS = st.sampled_from(["word", "sentence"])
PLAIN = re.compile(
    "effusion|cardiomegaly|pneumothora|consolidation|nodul|edema|atelecta|central venous line|pacemaker",
    re.IGNORECASE,
)


@given(TEXTS, st.sampled_from(MODES), FIELDS)
@settings(max_examples=300)
def test_redacting_twice_changes_nothing(text: str, mode: Redaction, field: str) -> None:
    once = redact(text, mode, field=field)
    twice = redact(once.text, mode, field=field)
    assert twice == Redacted(once.text, ())


@given(
    TEXTS, st.sampled_from(["word", "sentence", "indication"]), FIELDS, st.sampled_from(["word", "sentence"])
)
@settings(max_examples=300)
def test_no_term_of_any_list_survives(text: str, mode: Redaction, field: str, unit: Unit) -> None:
    left = redact(text, mode, field=field, unit=unit).text
    assert survivors(left, field) == []
    assert not PLAIN.search(left)


@given(TEXTS, st.sampled_from(MODES), FIELDS)
@settings(max_examples=300)
def test_the_log_accounts_for_every_character(text: str, mode: Redaction, field: str) -> None:
    redacted = redact(text, mode, field=field)
    gone = [position for span in redacted.spans for position in range(span.start, span.end)]
    assert len(gone) == len(set(gone))
    assert "".join(c for k, c in enumerate(text) if k not in set(gone)) == redacted.text


@pytest.mark.parametrize("text", PHANTOMS)
def test_modes_take_ever_more_out_of_a_report(text: str) -> None:
    assert redact(text, "none").text == text
    word, sentence, indication = (redact(text, mode).text for mode in ("word", "sentence", "indication"))
    assert len(text) > len(word) > len(sentence) >= len(indication)
    assert indication == text.split("\n", 1)[0]


EXAMPLE = (
    "INDICATION: Acute dyspnea, no fever, known effusion.\n"
    "FINDINGS: Heart size is normal. No pneumothorax. There is free air below the diaphragm.\n"
    "IMPRESSION: No acute disease. Compare with CT."
)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", EXAMPLE),
        (
            "word",
            "INDICATION: Acute dyspnea, no fever, known.\n"
            "FINDINGS: Heart size is. No. There is free air below the diaphragm.\n"
            "IMPRESSION: No disease. Compare with CT.",
        ),
        (
            "sentence",
            "FINDINGS: There is free air below the diaphragm.\nIMPRESSION: Compare with CT.",
        ),
        ("indication", "INDICATION: Acute dyspnea, no fever, known."),
    ],
)
def test_modes_by_example(mode: Redaction, expected: str) -> None:
    assert redact(EXAMPLE, mode).text == expected


def test_the_indication_can_lose_whole_sentences() -> None:
    text = "Cough. Known effusion, follow-up."
    assert redact(text, "indication", field="indication").text == "Cough. Known, follow-up."
    assert redact(text, "indication", field="indication", unit="sentence").text == "Cough."


def test_rules_name_what_asked_for_a_deletion() -> None:
    spans = redact("INDICATION: tb.\nFINDINGS: Small effusion. Clear.", "word").spans
    assert {span.rule for span in spans} == {"tuberculosis", "effusion", "normality", "blank"}
    assert {s.rule for s in redact("FINDINGS: Small effusion.", "indication").spans} == {"section"}


@pytest.mark.parametrize("heading", ["INDICATION", "HISTORY", "CLINICAL INFORMATION", "Reason for exam"])
def test_only_the_request_is_left_under_any_heading(heading: str) -> None:
    text = f"Portable chest.\n{heading}: Cough.\nFINDINGS: Opaque left base.\nIMPRESSION: As above."
    assert redact(text).text == f"{heading}: Cough."


def test_a_report_without_headings_has_no_indication() -> None:
    assert redact("Large opaque area at the left base.").text == ""
    assert redact("Large opaque area.", field="impression").text == ""


def test_a_mode_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no such redaction") as error:
        redact("x", "words")  # type: ignore[arg-type]
    assert "did you mean 'word'?" in str(error.value)
