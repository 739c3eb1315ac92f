"""Class weights from all sites' counts: the same loss at every site, as if the studies were in one place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.class_weights import balanced
from common.protocol import LABEL_COUNTS
from server.federation import Federation

_KEY = "class_weights"


def class_weights(federation: Federation) -> NDArray[np.float64] | None:
    """Return the weight ``[F]`` of a study that has a finding, or None where the plan asks for none.

    From the counts that the sites enrolled with. They stand in the ledger from the first time on: a run
    that is resumed, or that other sites join later, goes on with the same.
    """
    if federation.config.train.class_weights != "federated":
        return None
    findings, ledger = federation.config.data.findings, federation.ledger
    known = ledger.get(_KEY)
    if known is None:
        enrolled = [facts for name, facts in ledger.sites().items() if name in federation.sites]
        told = np.array([[facts[key] for key in LABEL_COUNTS] for facts in enrolled], dtype=np.int64)
        positives, negatives = told.sum(axis=0)  # [sites, 2, F] -> [2, F]
        weights = balanced(positives, negatives).tolist()
        known = {
            "positives": dict(zip(findings, positives.tolist(), strict=True)),
            "negatives": dict(zip(findings, negatives.tolist(), strict=True)),
            "weights": dict(zip(findings, weights, strict=True)),
        }
        ledger.put(_KEY, known)
        words = ", ".join(f"{finding} {weight:.3g}" for finding, weight in known["weights"].items())
        ledger.event("weights", f"a study that has a finding weighs, by all sites' counts: {words}", **known)
    return np.array([known["weights"][finding] for finding in findings])
