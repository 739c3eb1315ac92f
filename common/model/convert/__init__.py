"""Checkpoints as published, under timm's names: transformers, open_clip, MedCLIP, torchvision, MAE."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from common.model.convert.layouts import clip, densenet, mae, swin, vit

_PREFIXES = (
    "visual.trunk.",  # open_clip around a timm network (BiomedCLIP)
    "vision_model.model.",  # MedCLIP, both towers
    "vision_encoder.model.",  # the same, as others keep it
    "vision_model.",  # transformers CLIPModel
    "dinov2.",  # transformers, with a head on top
    "swin.",
    "vit.",
    "model.",  # MedCLIP's vision tower by itself
)
"""Where the image encoder lies in a checkpoint that holds more, the longer first."""


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint's image encoder to timm's names and fuse its q, k, v; drop what is beside it.

    The layout is told by the names alone. What is in timm's or torchvision's layout already, or in one
    that timm reads by itself (OpenAI's CLIP, facebookresearch/dinov2), stays as it is.

    Raises:
        WeightsError: if a layer has only some of q, k and v.
    """
    inner = _encoder(_without("module.", state))
    if "embeddings.class_embedding" in inner:
        return clip(inner)
    if any(name.startswith(("encoder.layers.0.blocks.", "embeddings.norm.")) for name in inner):
        return swin(inner)
    if "embeddings.cls_token" in inner:
        return vit(inner)
    if "features.denseblock1.denselayer1.norm.1.weight" in inner:
        return densenet(inner)
    return mae(inner) if "decoder_embed.weight" in inner else inner


def _without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what DataParallel puts before every name."""
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        found = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        if found:
            return found
    return state
