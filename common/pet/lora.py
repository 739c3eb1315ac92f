"""``lora``: W + (alpha / r) B A on chosen layers (Hu et al. 2021, eq. 3), through ``peft``."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import inject_adapter_in_model
from torch import nn

from common.config import RunConfig
from common.pet.fused import fuse
from common.pet.targets import Cut, default_targets, resolve_targets

VIT_TARGETS = ("qkv", "proj", "fc1", "fc2")


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Insert A (Kaiming-uniform from the run's seed) and B (zero).

    A is drawn here rather than by peft, so that it depends on nothing but the seed and every
    site that builds the model has the same A: ``ffa`` rests on it.
    """
    targets = resolve_targets(net, arch, config.pet, default_targets(arch, VIT_TARGETS))
    inject_adapter_in_model(
        PeftLora(
            r=config.pet.rank,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # peft says int, computes with float
            lora_dropout=config.lora.dropout,
            target_modules=targets,
            bias="none",
        ),
        net,
    )
    generator = torch.Generator().manual_seed(config.seed)
    for name, parameter in net.named_parameters():
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
        elif ".lora_B." in name:
            nn.init.zeros_(parameter)
    fuse(net)


def scale(config: RunConfig) -> float:
    """Return alpha / r, the factor on B A."""
    return config.lora.alpha / config.pet.rank
