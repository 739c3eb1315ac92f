"""``vera``: W + diag(b) B diag(d) A with A, B frozen from a shared seed (Kopiczko et al. 2024, eq. 2).

The shared matrices depend on the seed and on the largest adapted layer, so ranks and scopes give
different ones; they never travel.
"""

from __future__ import annotations

from typing import Any

from peft import VeraConfig, VeraModel

from common.config import RunConfig
from common.errors import TargetError
from common.pet.targets import Cut, default_targets, has_attention, resolve_targets

VIT_TARGETS = ("qkv", "proj", "fc1", "fc2")


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Insert the vectors d (0.1) and b (zero), through ``peft``.

    Raises:
        TargetError: on a convolutional backbone, where VeRA is not defined.
    """
    if not has_attention(arch) and not config.pet.targets:
        raise TargetError(
            "pet.method = 'vera' adapts linear layers",
            found=f"family {arch.family!r}",
            fix="use a ViT, or name linear layers in pet.targets",
        )
    targets = resolve_targets(net, arch, config.pet, default_targets(arch, VIT_TARGETS))
    described = VeraConfig(
        r=config.pet.rank,
        target_modules=targets,
        projection_prng_key=config.seed,
        vera_dropout=config.lora.dropout,
        bias="none",
    )
    VeraModel(net, {"default": described}, "default")
