from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from client.text.leak_probe import FOLDS, check_leak, leak_probe, patient_folds
from client.text.redaction import MODES, redact
from common.errors import DataError
from simulations.phantom.cases import FINDINGS, Cases
from simulations.phantom.report import Report


def labels_of(cases: Cases) -> NDArray[np.float32]:
    return cases.labels.astype(np.float32)


def test_phantom_reports_tell_all_and_their_indication_next_to_nothing(
    cases: Cases, reports: list[Report], whole: Callable[[Report], str]
) -> None:
    patients = cases.patient.astype(str).tolist()
    macro = {}
    for mode in MODES:
        texts = [redact(whole(report), mode).text for report in reports]
        result = leak_probe(texts, labels_of(cases), patients, FINDINGS, seed=0, replicates=0)
        macro[mode] = result.macro_auroc
    assert macro["none"] > 0.98
    assert macro["none"] > macro["word"] > macro["indication"]
    assert macro["none"] > macro["sentence"]
    assert 0.45 < macro["indication"] < 0.65


def test_the_same_seed_gives_the_same_figures(cases: Cases, reports: list[Report]) -> None:
    texts, patients = [r.indication for r in reports], cases.patient.astype(str).tolist()
    a, b, other = (
        leak_probe(texts, labels_of(cases), patients, FINDINGS, seed=seed, replicates=50)
        for seed in (1, 1, 2)
    )
    assert a == b
    assert a != other
    low, high = a.macro_interval
    assert low < a.macro_auroc < high


def test_shuffled_labels_are_at_chance(cases: Cases, reports: list[Report]) -> None:
    shuffled = np.random.default_rng(4).permutation(labels_of(cases))
    result = leak_probe(
        [r.findings for r in reports], shuffled, [str(k) for k in range(len(reports))], FINDINGS, seed=0,
        replicates=0,
    )  # fmt: skip
    assert abs(result.macro_auroc - 0.5) < 0.05


def test_what_only_identifies_a_patient_is_no_leak() -> None:
    """Studies of one patient share label and a name: a probe that split by study would score 1."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(150), 4)
    labels = rng.integers(0, 2, 150)[patients].astype(np.float32)[:, None]
    result = leak_probe(
        [f"name{p}" for p in patients], labels, patients.astype(str).tolist(), ["edema"], seed=0, replicates=0
    )
    assert result.macro_auroc == pytest.approx(0.5, abs=0.05)


def test_folds_share_no_patient_and_spread_the_labels(cases: Cases) -> None:
    patients = cases.patient.astype(str)
    fold = patient_folds(patients, labels_of(cases), seed=3)
    assert set(fold.tolist()) == set(range(FOLDS))
    for patient in np.unique(patients):
        assert len(set(fold[patients == patient].tolist())) == 1
    sizes = np.bincount(fold)
    assert sizes.max() < 1.3 * sizes.min()
    share = np.array([labels_of(cases)[fold == k].mean(axis=0) for k in range(FOLDS)])
    assert np.ptp(share, axis=0).max() < 0.12


def test_scores_are_those_of_a_vectoriser_fitted_in_every_fold(cases: Cases, reports: list[Report]) -> None:
    """Parity with scikit-learn's own pipeline and AUROC."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    texts = np.array([r.indication for r in reports])
    patients, labels = cases.patient.astype(str), labels_of(cases)
    fold = patient_folds(patients, labels, seed=0)
    scores = np.zeros(labels.shape)
    for held in range(FOLDS):
        for j in range(len(FINDINGS)):
            model = make_pipeline(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                LogisticRegression(solver="liblinear", class_weight="balanced"),
            ).fit(texts[fold != held], labels[fold != held, j])
            scores[fold == held, j] = model.predict_proba(texts[fold == held])[:, 1]
    expected = {name: roc_auc_score(labels[:, j], scores[:, j]) for j, name in enumerate(FINDINGS)}
    result = leak_probe(texts.tolist(), labels, patients.tolist(), FINDINGS, seed=0, replicates=0)
    for name, area in expected.items():
        assert result.findings[name].auroc == pytest.approx(area, abs=1e-4)
    assert result.macro_auroc == pytest.approx(np.mean(list(expected.values())), abs=1e-4)


def test_findings_without_support_are_not_measured(cases: Cases, reports: list[Report]) -> None:
    labels = labels_of(cases)
    labels[:, 0] = 0
    labels[:20, 0] = 1
    labels[:, 1] = np.nan
    labels[300:, 2] = np.nan
    texts, patients = [r.findings for r in reports], cases.patient.astype(str).tolist()
    result = leak_probe(texts, labels, patients, FINDINGS, seed=0, replicates=0)
    assert result.findings[FINDINGS[0]].auroc is None
    assert result.findings[FINDINGS[1]].auroc is None
    measured = result.findings[FINDINGS[2]]
    assert measured.auroc > 0.95 and measured.positives + measured.negatives == 300


@pytest.mark.parametrize("text", ["", "a", "42"])
def test_text_without_words_is_chance(text: str) -> None:
    labels = np.tile([[1.0], [0.0]], (60, 1)).astype(np.float32)
    result = leak_probe([text] * 120, labels, [str(k) for k in range(120)], ["edema"], seed=0, replicates=10)
    assert result.macro_auroc == 0.5


def test_nothing_to_measure_fails_closed() -> None:
    result = leak_probe(["edema"] * 8, np.ones((8, 1), np.float32), list("abcdefgh"), ["edema"], seed=0)
    assert result.macro_auroc is None
    with pytest.raises(DataError, match="cannot be measured"):
        check_leak(result, "indication", 1.0)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(DataError, match="at least 5 patients"):
        leak_probe(["x"] * 4, np.zeros((4, 1), np.float32), list("abcd"), ["edema"], seed=0)
    with pytest.raises(DataError, match="one length"):
        leak_probe(["x"], np.zeros((2, 1), np.float32), ["a", "b"], ["edema"], seed=0)
