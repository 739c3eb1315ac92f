"""What a site tells for calibration, and of which findings it is silent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logit

from client.calibrate import platt_metrics
from common.errors import DataError
from common.metrics.platt import PlattSums, site_sums

FINDINGS = ("effusion", "nodule", "hernia")
ASKED = {"effusion": (0.8, -1.0), "nodule": (0.0, 0.0), "hernia": (1.0, 0.0)}


def site(n=200):
    """Scores and labels ``[n, 3]``: hernia in nobody, nodule not always annotated."""
    generator = np.random.default_rng(0)
    labels = (generator.random((n, 3)) < [0.4, 0.3, 0.0]).astype(np.float32)
    labels[::5, 1] = np.nan
    return generator.random((n, 3)).astype(np.float32), labels


def test_the_sums_are_those_of_the_annotated_studies():
    scores, labels = site()
    told = platt_metrics(scores, labels, FINDINGS, ASKED, min_cell=11)
    known = ~np.isnan(labels[:, 1])
    expected = site_sums(logit(scores[known, 1].astype(float)), labels[known, 1], 0.0, 0.0)
    assert told["nodule.positives"] == (labels[:, 1] == 1).sum()
    assert told["nodule.negatives"] == (labels[:, 1] == 0).sum()
    assert told["nodule.platt"] == pytest.approx(expected.to_list(), abs=1e-6)
    PlattSums.from_list(told["effusion.positives"], told["effusion.negatives"], told["effusion.platt"])
    assert all(type(v) in (int, list) for v in told.values())
    assert all(type(v) is float for v in told["effusion.platt"])


@pytest.mark.parametrize(("positives", "told"), [(10, False), (11, True)])
def test_a_finding_of_too_few_studies_leaves_no_trace(positives, told):
    scores, labels = site()
    labels[:, 0] = 0.0
    labels[:positives, 0] = 1.0
    assert ("effusion.platt" in platt_metrics(scores, labels, FINDINGS, ASKED, 11)) is told
    labels[:, 0] = 1 - labels[:, 0]
    answer = platt_metrics(scores, labels, FINDINGS, ASKED, 11)
    assert ("effusion.negatives" in answer) is told
    assert not any(key.startswith("hernia") for key in answer)


def test_with_no_least_cell_a_finding_nobody_has_is_told():
    scores, labels = site()
    labels[:, 1] = np.nan
    answer = platt_metrics(scores, labels, FINDINGS, ASKED, 1)
    assert (answer["hernia.positives"], answer["hernia.negatives"]) == (0, 200)
    assert not any(key.startswith("nodule") for key in answer)


def test_only_what_was_asked_for_is_told():
    answer = platt_metrics(*site(), FINDINGS, {"nodule": (1.0, 0.0), "covid": (1.0, 0.0)}, 1)
    assert {key.split(".")[0] for key in answer} == {"nodule"}


def test_a_score_of_a_study_that_is_not_annotated_is_not_looked_at():
    scores, labels = site()
    scores[np.isnan(labels[:, 1]), 1] = np.nan
    assert "nodule.platt" in platt_metrics(scores, labels, FINDINGS, ASKED, 11)
    scores[0, 0] = np.nan
    with pytest.raises(DataError):
        platt_metrics(scores, labels, FINDINGS, ASKED, 11)
    with pytest.raises(DataError, match="studies, findings"):
        platt_metrics(scores, labels, FINDINGS[:2], ASKED, 11)
