"""SiteUpdate: what is left of a site's answer once it has been admitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SiteUpdate:
    """One admitted update."""

    site: str
    num_examples: int
    """Training studies behind it: its weight in the mean."""
    labelled: NDArray[np.int64]
    """``[F]``: of these, how many carry each finding's label; 0 where the site does not own it."""
    delta: Mapping[str, Tensor]
    """Tensor name -> trained minus received."""
