"""The last block of a ViT whose class token alone is read: what it would say of the other tokens is left out.

With token pooling nothing behind the last block reads any token but the first. Its query alone attends then,
and projection and MLP run on one token of N. Nor need keys and values be formed where the qkv weights are
plain matrices: with the normalised tokens n_j and one head's weights, q . (W_k n_j + b_k) =
(W_k^T q) . n_j + q . b_k, where the last term is the same for every j and softmax does not see it, and
sum_j a_j (W_v n_j + b_v) = W_v (sum_j a_j n_j) + b_v. With H heads that is 2 H N D multiplications in place
of the 12 N D^2 + 2 N^2 D of a block. It is the same sum in another order, for gradients too.
"""

from __future__ import annotations

from typing import Any

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from common.model.qkv import QKV_PARTS, SplitQKV
from common.pet.fused import whole_layer


def run_last_block(net: Any, name: str, x: Tensor) -> Tensor:
    """Run the last block ``name`` on ``[B, N, D]``: ``[B, 1, D]`` where that is all the pooling reads."""
    block = net.get_submodule(name)
    if not _reads_one_token(net) or not _is_plain(block):
        whole: Tensor = block(x)
        return whole
    attended = _attend(block.attn, block.norm1(x))  # [B, 1, D]
    token = x[:, :1] + block.drop_path1(block.ls1(attended))
    last: Tensor = token + block.drop_path2(block.ls2(block.mlp(block.norm2(token))))
    return last


def _reads_one_token(net: Any) -> bool:
    return net.global_pool == "token" and net.attn_pool is None


def _is_plain(block: nn.Module) -> bool:
    """Whether a block and its attention compute what timm's plain ones do; layers within may be adapted."""
    attention = getattr(block, "attn", None)
    return (
        type(block) is Block
        and type(attention) is Attention
        and attention.gate is None
        and not _is_watched(block)
        and not _is_watched(attention)
    )


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _attend(attention: Any, tokens: Tensor) -> Tensor:
    """Return what the first of the normalised tokens ``[B, N, D]`` gathers: ``[B, 1, D]``."""
    drop = attention.attn_drop.p if attention.training else 0.0
    layers = None if drop or not _has_plain_heads(attention) else _qkv_layers(attention.qkv)
    gathered = (
        _by_keys(attention, tokens, drop) if layers is None else _by_weights(attention, tokens, *layers)
    )
    out: Tensor = attention.proj_drop(attention.proj(attention.norm(gathered)))
    return out


def _has_plain_heads(attention: Any) -> bool:
    return isinstance(attention.q_norm, nn.Identity) and isinstance(attention.k_norm, nn.Identity)


def _qkv_layers(qkv: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return weight ``[3 D, D]`` and bias ``[3 D]`` of queries, keys and values, if these are matrices."""
    if not isinstance(qkv, SplitQKV):
        return whole_layer(qkv)
    if _is_watched(qkv):
        return None
    parts = [whole_layer(getattr(qkv, part)) for part in QKV_PARTS]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    biases = [bias for _, bias in known if bias is not None]
    return torch.cat([weight for weight, _ in known]), torch.cat(biases) if biases else None


def _by_weights(attention: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Attend without forming keys and values: ``[B, 1, H d]``."""
    of_q, of_k, of_v = weight.unflatten(0, (3, attention.num_heads, attention.head_dim))  # [H, d, D]
    b_q, _, b_v = (None, None, None) if bias is None else bias.chunk(3)
    query = functional.linear(tokens[:, 0], of_q.flatten(0, 1), b_q) * attention.scale  # [B, H d]
    heads = query.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)  # [H, B, d]
    asked = (heads @ of_k).transpose(0, 1)  # [B, H, D]
    share = (asked @ tokens.transpose(1, 2)).softmax(dim=-1)  # [B, H, N]
    seen = (share @ tokens).transpose(0, 1)  # [H, B, D]
    values = (seen @ of_v.transpose(1, 2)).transpose(0, 1).flatten(1)  # [B, H d]
    return (values if b_v is None else values + b_v)[:, None]


def _by_keys(attention: Any, tokens: Tensor, drop: float) -> Tensor:
    """Attend as the block itself does, with one query: ``[B, 1, H d]``."""
    qkv = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, H, N, d] each
    query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
    gathered = functional.scaled_dot_product_attention(query, key, value, dropout_p=drop)
    return gathered.transpose(1, 2).flatten(2)
