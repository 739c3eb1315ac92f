"""Names of findings, and what an empty, an uncertain and an odd label become."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import LabelError
from common.findings import CHEXPERT_5, FINDINGS, SYNONYMS, canonical, label_matrix, suggest

spellings = st.sampled_from([(n, o) for n in FINDINGS for o in (n, *SYNONYMS[n])])
separators = st.sampled_from([" ", "_", "-", "  "])


@given(spellings, separators, st.sampled_from([str.lower, str.upper, str.title]))
def test_every_usual_spelling_is_understood(pair, separator, case):
    name, other = pair
    assert canonical(case(other).replace("_", " ").replace("-", " ").replace(" ", separator)) == name


def test_no_name_stands_for_two_findings():
    spelled = [other for name in FINDINGS for other in (name, *SYNONYMS[name])]
    assert len(spelled) == len(set(spelled))
    assert all(canonical(other) == name for name in FINDINGS for other in (name, *SYNONYMS[name]))


def test_what_lies_within_another_finding_is_not_the_same():
    parts = ("nodule", "mass", "Nodule/Mass", "lung lesion", "lung opacity")
    assert len({canonical(n) for n in parts}) == len(parts)
    assert len({canonical(n) for n in ("granuloma", "calcified granuloma", "tuberculosis")}) == 3
    assert len({canonical(n) for n in ("emphysema", "COPD", "ILD", "pulmonary fibrosis")}) == 4


@pytest.mark.parametrize("name", ["No Finding", "no_finding", "NORMAL", "No  findings"])
def test_no_finding_is_none(name):
    with pytest.raises(LabelError, match="is not a finding"):
        canonical(name)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(LabelError) as caught:
        canonical("cardiomegalie")
    assert caught.value.fix == "did you mean 'cardiomegaly'?"
    with pytest.raises(LabelError) as caught:
        canonical("qqqq")
    assert "findings.py" in caught.value.fix


def test_suggest_takes_the_first_column_and_strips_prefixes():
    columns = ["Path", "lab_edema", "Pleural Effusion", "effusion", "label_TB", "No Finding"]
    assert suggest(columns) == {
        "edema": "lab_edema",
        "effusion": "Pleural Effusion",
        "tuberculosis": "label_TB",
    }


@given(
    st.lists(st.sampled_from([0.0, 1.0, -1.0, np.nan]), min_size=1, max_size=20),
    st.sampled_from(["ignore", "ones", "zeros"]),
)
def test_labels_follow_the_policy(values, policy):
    column = np.array(values)
    labels = label_matrix({"edema": column}, ["mass", "edema"], {"edema": policy}, len(values))
    becomes = {"ignore": np.nan, "ones": 1.0, "zeros": 0.0}[policy]
    expected = [becomes if v == -1 else v for v in values]
    np.testing.assert_array_equal(labels[:, 1], expected)
    assert np.isnan(labels[:, 0]).all()
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(column, values)


def test_uncertain_without_a_policy_is_refused_with_the_line_to_write():
    with pytest.raises(LabelError, match="2 uncertain") as caught:
        label_matrix({"edema": np.array([-1.0, 0, -1])}, ["edema"], {"mass": "ones"}, 3)
    assert caught.value.fix.startswith("set uncertainty.edema =")


def test_the_policy_of_the_five_chexpert_findings():
    columns = {finding: np.array([-1.0, 1, 0, np.nan]) for finding in CHEXPERT_5}
    labels = label_matrix(columns, list(CHEXPERT_5), CHEXPERT_5, 4)
    uncertain = dict(zip(CHEXPERT_5, labels[0].tolist(), strict=True))
    assert uncertain == {"atelectasis": 1, "edema": 1, "effusion": 1, "cardiomegaly": 0, "consolidation": 0}
    assert (labels[1] == 1).all() and (labels[2] == 0).all() and np.isnan(labels[3]).all()


@pytest.mark.parametrize("value", [2.0, 0.5, -2.0, np.inf])
def test_an_odd_label_is_named_with_its_row(value):
    with pytest.raises(LabelError, match="'edema'") as caught:
        label_matrix({"edema": np.array([0.0, value])}, ["edema"], {}, 2)
    assert caught.value.found.endswith("in row 2")
