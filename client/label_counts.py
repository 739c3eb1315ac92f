"""How many training studies have each finding, as far as a site may tell: for class weights of all sites."""

from __future__ import annotations

import numpy as np

from client.data.dataset import SiteData
from common.protocol import LABEL_COUNTS, Value


def label_metrics(data: SiteData, min_cell: int) -> dict[str, Value]:
    """Return the training studies with each finding, and without it, as an answer's metrics ``[F]``.

    Both are 0 for a finding that fewer than ``min_cell`` of them have, or lack: with the number of
    annotated studies, which comes with every round, one of the two would tell the other.
    """
    positives, negatives = data.count_labels("train")
    if min_cell > 1:
        told = np.minimum(positives, negatives) >= min_cell
        positives, negatives = np.where(told, positives, 0), np.where(told, negatives, 0)
    return dict(zip(LABEL_COUNTS, (positives.tolist(), negatives.tolist()), strict=True))
