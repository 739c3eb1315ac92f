"""``head``: a linear probe; the backbone and everything in it stays frozen."""

from __future__ import annotations

from typing import Any

from common.config import RunConfig
from common.pet.targets import Cut


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Add nothing: the head itself is trained by every method."""
