"""``norm``: gain and bias of every normalisation layer in scope."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.config import RunConfig
from common.errors import TargetError
from common.pet.targets import Cut, in_scope

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Unfreeze the affine parameters; running statistics stay frozen.

    Raises:
        TargetError: if no normalisation layer with parameters lies in scope.
    """
    found = False
    for name, module in net.named_modules():
        if isinstance(module, _NORMS) and in_scope(f"{name}.", arch, config.pet.scope):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
                found = True
    if not found:
        raise TargetError(f"pet.method = 'norm' finds no norm in scope {config.pet.scope!r}")
