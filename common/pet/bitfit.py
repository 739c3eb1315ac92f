"""``bitfit``: every bias in scope (Ben Zaken et al. 2022, section 3)."""

from __future__ import annotations

from typing import Any

from common.config import RunConfig
from common.errors import TargetError
from common.pet.targets import Cut, in_scope


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Unfreeze the biases.

    Raises:
        TargetError: if no bias lies in scope.
    """
    found = False
    for name, parameter in net.named_parameters():
        if name.endswith(".bias") and in_scope(name, arch, config.pet.scope):
            parameter.requires_grad_(True)
            found = True
    if not found:
        raise TargetError(f"pet.method = 'bitfit' finds no bias in scope {config.pet.scope!r}")
