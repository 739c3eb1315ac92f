"""``full``: everything in scope, the baseline to beat."""

from __future__ import annotations

from typing import Any

from common.config import RunConfig
from common.pet.targets import Cut, in_scope


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Unfreeze every parameter in scope; BatchNorm statistics stay frozen."""
    for name, parameter in net.named_parameters():
        if in_scope(name, arch, config.pet.scope):
            parameter.requires_grad_(True)
