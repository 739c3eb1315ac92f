"""A fused qkv projection cut into its three parts, so that each can be adapted by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

QKV_PARTS = ("q", "k", "v")


class SplitQKV(nn.Module):
    """A fused qkv projection as three linear layers."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width, bias = fused.out_features // 3, fused.bias is not None
        for i, part in enumerate(QKV_PARTS):
            linear = nn.Linear(fused.in_features, width, bias=bias)
            linear.weight.data = fused.weight.data[i * width : (i + 1) * width].clone()
            if bias:
                linear.bias.data = fused.bias.data[i * width : (i + 1) * width].clone()
            self.add_module(part, linear)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, 3 D]``, as the fused layer does."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
