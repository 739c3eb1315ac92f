"""Every PET method by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.config import RunConfig
from common.pet import adapter, bitfit, full, head, ia3, lora, norm, vera
from common.pet.targets import Cut

METHODS: dict[str, Callable[[Any, Cut, RunConfig], None]] = {
    "adapter": adapter.insert,
    "bitfit": bitfit.insert,
    "full": full.insert,
    "head": head.insert,
    "ia3": ia3.insert,
    "lora": lora.insert,
    "norm": norm.insert,
    "vera": vera.insert,
}
