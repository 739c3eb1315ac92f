"""The encoder that pretraining moved, as a weights file of its own: the base of the next plan."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from common.adapter import AdapterState
from common.model.build import CxrModel
from common.model.qkv import QKV_PARTS

ENCODER = "encoder.safetensors"
"""Its name in a release; ``model.weights`` of another plan can name the file."""
_PART = re.compile(rf"\.qkv\.({'|'.join(QKV_PARTS)})\.(\w+)$")


def encoder_tensors(model: CxrModel, state: AdapterState) -> dict[str, Tensor]:
    """Return the whole image encoder with what the state moved in it, under timm's own names.

    Empty where the plan moves no encoder: the base is then what it was, and everybody has it. A fused qkv
    that was adapted in parts is one again. What fine-tuning moved in the encoder itself (bitfit, norm,
    full) is in it; adapters beside it are not.
    """
    if not model.schema.encoder:
        return {}
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name in model.schema.encoder:
        if match := _PART.search(name):
            fused = f"{name[: match.start()]}.qkv.{match[2]}"
            parts.setdefault(fused, {})[match[1]] = state.tensors[name]
        else:
            tensors[name] = state.tensors[name]
    for fused, qkv in parts.items():
        tensors[fused] = torch.cat([qkv[part] for part in QKV_PARTS])
    for name, buffer in model.net.named_buffers():
        if name in model.base_names:  # BatchNorm's statistics, which nothing moves
            tensors[name] = buffer.detach().cpu()
    return {name: tensors[name].contiguous() for name in model.base_names if name in tensors}
