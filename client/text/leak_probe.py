"""How much of the labels text alone gives away: a bag of words, no image.

A multimodal model that beats an image model has shown nothing while this probe does as well: the
labels came from the reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.data.split import split_by_patient
from common.errors import DataError
from common.metrics import SiteMetrics, evaluate_scores
from common.sections import Redaction

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FOLDS = 5
SUPPORT = 25
"""Reports with a finding, and without, that a figure needs: five in every fold."""

ProbeResult = SiteMetrics
"""Macro AUROC with its interval over the findings with support, and each finding."""


def leak_probe(
    texts: Sequence[str],
    labels: NDArray[np.float32],
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    seed: int,
    support: int = SUPPORT,
    replicates: int = 500,
) -> ProbeResult:
    """Predict labels ``[N, F]`` (1, 0, NaN) from texts, each patient's by a model that never saw them.

    TF-IDF over words and pairs of words with a logarithmic term frequency, then one logistic
    regression a finding, in `FOLDS` folds that share no patient. The AUROC is over the scores of all
    folds together; the interval is the patient bootstrap's. A finding without `SUPPORT` reports of
    each kind is not measured; without any such finding the macro AUROC is None.

    Raises:
        DataError: if there are fewer patients than folds, or texts, labels and patients differ in
            number.
    """
    if not len(texts) == len(labels) == len(patients):
        raise DataError(
            "texts, labels and patients must be of one length",
            found=f"{len(texts)} texts, {len(labels)} labels, {len(patients)} patients",
        )
    fold = patient_folds(np.asarray(patients, dtype=np.str_), labels, seed)
    measured = (((labels == 1).sum(0) >= support) & ((labels == 0).sum(0) >= support)).nonzero()[0]
    scores = np.full(labels.shape, 0.5, dtype=np.float32)
    counts = _count_words(texts)
    for held in range(FOLDS):
        train, test = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        seen, new = _weigh(counts, train, test)
        for j in measured:
            known = ~np.isnan(labels[train, j])
            scores[test, j] = _fit_and_score(seen[known], labels[train, j][known], new)
    return evaluate_scores(
        scores,
        labels,
        list(patients),
        findings,
        replicates=replicates,
        generator=np.random.default_rng(seed),
        min_cell=support,
    )


def check_leak(result: ProbeResult, mode: Redaction, allowed: float) -> None:
    """Hold a probe's result against the threshold.

    Raises:
        DataError: if the macro AUROC is above it, or could not be measured.
    """
    if result.macro_auroc is None:
        raise DataError(
            "the leak of the reports cannot be measured",
            found=f"no finding has {SUPPORT} reports with it and {SUPPORT} without",
            fix="train without text, or pool more reports",
        )
    if result.macro_auroc > allowed:
        stricter = {"none": "word", "word": "sentence", "sentence": "indication"}.get(mode)
        raise DataError(
            f"reports give the labels away: redaction {mode!r} leaves a macro AUROC of "
            f"{result.macro_auroc:.3f} without any image, {allowed:g} is allowed",
            found=f"{sum(f.auroc is not None for f in result.findings.values())} findings over "
            f"{result.studies} reports",
            fix=(f'set text.redaction = "{stricter}", ' if stricter else "")
            + "take labels that were not read from these reports, or train without text",
        )


def patient_folds(patients: NDArray[np.str_], labels: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """Deal patients out to folds, labels evenly: `split_by_patient`, one fold from those left at a time.

    Raises:
        DataError: if there are fewer patients than folds.
    """
    count = len(np.unique(patients))
    if count < FOLDS:
        raise DataError(f"a leak probe needs at least {FOLDS} patients with reports", found=str(count))
    fold = np.full(len(patients), FOLDS - 1)
    for k in range(FOLDS - 1):
        left = np.flatnonzero(fold == FOLDS - 1)
        share = 1 / (FOLDS - k)
        parts = split_by_patient(patients[left], (share, 0.0, 1 - share), seed + k, labels[left])
        fold[left[parts == "train"]] = k
    return fold


def _count_words(texts: Sequence[str]) -> csr_matrix:
    """Count words and pairs of words, ``[N, V]``."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    vectoriser = CountVectorizer(ngram_range=(1, 2), dtype=np.float64)
    if not any(vectoriser.build_analyzer()(text) for text in texts):
        return csr_matrix((len(texts), 0))
    return vectoriser.fit_transform(texts)


def _weigh(counts: csr_matrix, train: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[Any, Any]:
    """Weigh counts by TF-IDF fitted on the training reports, whose words are the only ones known.

    The same as fitting a vectoriser in every fold, without reading the texts five times.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    known = np.flatnonzero(counts[train].getnnz(axis=0) > 0)
    seen, new = counts[train][:, known], counts[test][:, known]
    if not known.size:
        return seen, new
    weigh = TfidfTransformer(sublinear_tf=True).fit(seen)
    return weigh.transform(seen), weigh.transform(new)


def _fit_and_score(seen: Any, truth: NDArray[np.float32], new: Any) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression

    if seen.shape[1] == 0 or len(np.unique(truth)) < 2:
        return np.full(new.shape[0], 0.5)
    model = LogisticRegression(solver="liblinear", class_weight="balanced").fit(seen, truth)
    return model.predict_proba(new)[:, 1]
