"""Factors of adapted layers, by site: the pieces of M = sum_i w_i B_i A_i."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.adapter import AdapterState
from common.phase import LORA_A, LORA_B
from server.update import SiteUpdate


def adapted_layers(state: AdapterState) -> list[str]:
    """Return the layers that carry LoRA factors."""
    return [n.partition(LORA_A)[0] for n in state.tensors if LORA_A in n]


def factors(state: AdapterState, layer: str) -> tuple[Tensor, Tensor]:
    """Return (B ``[out, r]``, A ``[r, in]``) in float64; convolutions are flattened."""
    a = state.tensors[f"{layer}{LORA_A}weight"].double()
    b = state.tensors[f"{layer}{LORA_B}weight"].double()
    return b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)


def stacked(before: AdapterState, updates: Sequence[SiteUpdate], layer: str) -> tuple[Tensor, Tensor]:
    """Return P ``[out, n r]``, Q ``[n r, in]`` with P Q = sum_i w_i B_i A_i."""
    total = sum(update.num_examples for update in updates)
    left, right = [], []
    for b, a, examples in _site_factors(before, updates, layer):
        left.append(b * (examples / total))
        right.append(a)
    return torch.cat(left, dim=1), torch.cat(right, dim=0)


def _site_factors(
    before: AdapterState, updates: Sequence[SiteUpdate], layer: str
) -> Iterator[tuple[Tensor, Tensor, int]]:
    for update in updates:
        own = {n: d for n, d in update.delta.items() if n.startswith(f"{layer}.lora_")}
        b, a = factors(before.plus(own), layer)
        yield b, a, update.num_examples
