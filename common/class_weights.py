"""How much a study that has a finding weighs in the loss, from counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CLASS_WEIGHT = 20.0
"""A weight is at most this, and at least its inverse: a finding hardly ever seen must not rule the loss."""


def balanced(positives: NDArray[Any], negatives: NDArray[Any]) -> NDArray[np.float64]:
    """Return negatives / positives ``[F]`` of training studies, 1 for a finding that no study has.

    With it the studies with a finding weigh as much as those without (King and Zeng 2001).

    >>> balanced(np.array([10, 0, 1]), np.array([40, 9, 99]))
    array([ 4.,  1., 20.])
    """
    ratio = np.where(positives > 0, negatives / np.maximum(positives, 1), 1.0)
    return np.clip(ratio, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT)
