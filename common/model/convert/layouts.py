"""One function per published layout: the names of ``transformers`` 4 and 5, and those of MAE."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.errors import WeightsError

Rules = Sequence[tuple[str, str]]

_ATTENTION: Rules = (
    (r"\.(?:self_attn|attention(?:\.(?:attention|self))?)\.(?:query|q_proj)\.", ".attn.q."),
    (r"\.(?:self_attn|attention(?:\.(?:attention|self))?)\.(?:key|k_proj)\.", ".attn.k."),
    (r"\.(?:self_attn|attention(?:\.(?:attention|self))?)\.(?:value|v_proj)\.", ".attn.v."),
    (r"\.(?:self_attn\.out_proj|attention\.output\.dense|attention\.o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.(?:layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(?:layernorm_after|layer_norm2)\.", ".norm2."),
)
"""A transformer block; the attention's output before the MLP's, which are both called output.dense."""

_VIT: Rules = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    *_ATTENTION,
)
_CLIP: Rules = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    *_ATTENTION,
)
_SWIN: Rules = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"^layernorm\.", "norm."),
    (
        r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
        ".attn.relative_position_bias_table",
    ),
    *_ATTENTION,
)
_MAE_BESIDE = ("decoder_", "mask_token", "bert_encoder.", "bert_mlp.")
"""What reconstructs images (MAE) and reports (MRM), thrown away after pretraining."""
_UNUSED = re.compile(r"^pooler\.|^embeddings\.mask_token$|position_ids$|relative_position_index$")
_PART = re.compile(r"^(.*\.attn)\.([qkv])\.(\w+)$")


def vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename ViTModel (Dosovitskiy et al. 2021) or Dinov2Model (Oquab et al. 2023)."""
    return _fused(_renamed(state, _VIT))


def clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the image tower of CLIPModel (Radford et al. 2021); its projection is left out."""
    out = _fused(_renamed(state, _CLIP))
    out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in out:
        out["pos_embed"] = out["pos_embed"].unsqueeze(0)
    return out


def swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename SwinModel (Liu et al. 2021): timm merges patches before a stage, transformers after one."""
    return {
        re.sub(r"^layers\.(\d+)\.downsample\.", _next_stage, name): tensor
        for name, tensor in _fused(_renamed(state, _SWIN)).items()
    }


def densenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's published DenseNet, whose names torch has since forbidden: norm.1 is norm1."""
    return {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name): t for name, t in state.items()}


def mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the encoder of a masked autoencoder (He et al. 2022) or of MRM (Zhou et al. 2023)."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(_MAE_BESIDE)}


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample."


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _UNUSED.search(name):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def _fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack the rows of q, k and v, in this order."""
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := _PART.match(name):
            block, part, leaf = match.groups()
            parts.setdefault(f"{block}.qkv.{leaf}", {})[part] = tensor
        else:
            out[name] = tensor
    for name, own in parts.items():
        if len(own) < 3:
            raise WeightsError(
                "an attention layer of the weights is not whole",
                found=f"{name}: only {', '.join(sorted(own))}",
                fix="expected q, k and v of every layer",
            )
        out[name] = torch.cat([own["q"], own["k"], own["v"]])
    return out
