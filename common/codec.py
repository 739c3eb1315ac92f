"""Number formats an update can travel in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.sections import WireConfig

DTYPES: Mapping[str, Any] = {"fp32": np.float32, "fp16": np.float16}


def encode_update(delta: NDArray[np.float32], wire: WireConfig) -> NDArray[np.floating]:
    """Apply the plan's codec to a flat update."""
    encoded: NDArray[np.floating] = delta.astype(DTYPES[wire.codec])
    return encoded
