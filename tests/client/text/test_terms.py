from __future__ import annotations

import pytest

from client.text.cues import BORDERLINE, NORMAL
from client.text.labeller import IMPLIED, label_report
from client.text.phrases import compile_lists, find
from client.text.redaction import survivors
from client.text.terms import GIVE_AWAYS, LOOKALIKES, SIGNS, TERMS
from common.findings import FINDINGS, SYNONYMS


def test_every_finding_of_the_vocabulary_has_terms_and_nothing_else_has() -> None:
    assert set(TERMS) == set(FINDINGS)
    for lists in (LOOKALIKES, SIGNS, NORMAL, BORDERLINE):
        assert set(lists) <= set(FINDINGS)
    assert set(IMPLIED) | {other for other, _ in IMPLIED.values()} <= set(FINDINGS)
    assert not set(GIVE_AWAYS) & set(FINDINGS)


def test_lookalikes_contain_a_term_of_their_finding() -> None:
    terms = compile_lists(TERMS)
    examples = {
        "effusion": "pericardial effusion", "emphysema": "subcutaneous emphysema", "edema": "leg oedema",
        "hernia": "inguinal hernia", "lung_lesion": "lytic rib lesion", "mass": "mass effect",
        "nodule_or_mass": "breast mass", "pneumonia": "interstitial pneumonia",
        "support_device": "midclavicular line", "lung_cavity": "thoracic cavity",
        "lung_tumor": "breast cancer",
    }  # fmt: skip
    assert set(examples) == set(LOOKALIKES)
    for finding, text in examples.items():
        assert find(compile_lists({finding: LOOKALIKES[finding]}), text), finding
        if finding != "support_device":
            assert find({finding: terms[finding]}, text), finding
        assert finding not in label_report(f"There is {text}.")


WRITTEN = {
    "effusion": "pleural effusion, Effusions, pleural fluid, hydrothorax, fluid in the fissure",
    "cardiomegaly": "enlarged heart, cardiac enlargement, Heart is enlarged, heart size is mildly enlarged, "
    "enlargement of the cardiac silhouette, cardiomegaly",
    "edema": "pulmonary oedema, interstitial EDEMA",
    "atelectasis": "atelectases, atelectatic changes, right lower lobe collapse",
    "pneumothorax": "pneumothoraces, hydropneumothorax, PTX",
    "costophrenic_angle_blunting": "blunting of the left costophrenic angle, costophrenic sulci are blunted",
    "lung_opacity": "opacities, opacification, air-space disease, airspace disease, ground-glass",
    "support_device": "PICC, endotracheal tube, pacemaker, central venous line, chest drain, Port-A-Cath",
    "aortic_elongation": "tortuous aorta, aorta is calcified and tortuous, ectasia of the thoracic aorta",
    "enlarged_cardiomediastinum": "widened mediastinum, mediastinal contours are prominent",
    "hemidiaphragm_elevation": "elevated right hemidiaphragm, elevation of the left hemi-diaphragm",
    "covid": "COVID-19, SARS-CoV-2",
    "nodule": "nodules, micronodular",
}


@pytest.mark.parametrize(
    ("finding", "phrase"), [(f, phrase) for f, phrases in WRITTEN.items() for phrase in phrases.split(", ")]
)
def test_findings_are_known_as_radiologists_write_them(finding: str, phrase: str) -> None:
    assert label_report(f"There is {phrase}.").get(finding) == 1
    assert label_report(f"There is\n{phrase.upper()}.").get(finding) == 1


@pytest.mark.parametrize("finding", FINDINGS)
def test_redaction_knows_every_name_of_the_vocabulary(finding: str) -> None:
    for name in (finding, *SYNONYMS[finding]):
        assert finding in {match.rule for match in survivors(f"There is {name}.")}, name
