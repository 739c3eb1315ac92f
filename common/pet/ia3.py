"""``ia3``: learnt scales on keys, values and the feed-forward's inner activations (Liu et al. 2022).

Fused qkv is split first: scaling it whole would scale the queries too.
"""

from __future__ import annotations

from typing import Any

from peft import IA3Config, inject_adapter_in_model

from common.config import RunConfig
from common.errors import TargetError
from common.pet.targets import Cut, has_attention, is_feed_forward, resolve_targets

VIT_TARGETS = ("k", "v", "fc2")


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Insert the scales (one), through ``peft``; feed-forward layers are scaled at their input.

    Raises:
        TargetError: on a backbone that is not a ViT and without named targets.
    """
    if not has_attention(arch) and not config.pet.targets:
        raise TargetError(
            "pet.method = 'ia3' is defined on attention and feed-forward layers",
            found=f"family {arch.family!r}",
            fix="use a ViT, or name linear layers in pet.targets",
        )
    targets = resolve_targets(net, arch, config.pet, VIT_TARGETS)
    inner = [name for name in targets if is_feed_forward(name, arch)]
    inject_adapter_in_model(IA3Config(target_modules=targets, feedforward_modules=inner), net)
