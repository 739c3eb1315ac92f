"""Products of the sites' factors: M = sum_i w_i B_i A_i of an adapted layer, and the pieces it is made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from common.adapter import AdapterState
from common.phase import LORA_A, LORA_B
from server.update import Updates

_INNER = 256
"""Columns of the sites' factors multiplied at a time."""


def adapted_layers(state: AdapterState) -> list[str]:
    """Return the layers that carry LoRA factors."""
    return [n.partition(LORA_A)[0] for n in state.tensors if LORA_A in n]


def factors(state: AdapterState, layer: str) -> tuple[Tensor, Tensor]:
    """Return (B ``[out, r]``, A ``[r, in]``) in float64; convolutions are flattened."""
    a = state.tensors[f"{layer}{LORA_A}weight"].double()
    b = state.tensors[f"{layer}{LORA_B}weight"].double()
    return b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)


def pieces(before: AdapterState, updates: Updates, layer: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield P ``[out, k r]``, Q ``[k r, in]`` of k sites at a time; the products P Q add up to M.

    However many sites there are, a piece has few columns.
    """
    total = sum(sender.num_examples for sender in updates.senders)
    names = [f"{layer}{LORA_A}weight", f"{layer}{LORA_B}weight"]
    start = AdapterState({name: before.tensors[name] for name in names}, {})
    left: list[Tensor] = []
    right: list[Tensor] = []
    for place, sender in enumerate(updates.senders):
        b, a = factors(start.plus(updates.tensors(place, names)), layer)
        left.append(b * (sender.num_examples / total))
        right.append(a)
        if len(right) * len(a) >= _INNER or place + 1 == len(updates.senders):
            yield torch.cat(left, dim=1), torch.cat(right, dim=0)
            left, right = [], []


def dense_mean(before: AdapterState, updates: Updates, layer: str) -> Tensor:
    """Return M ``[out, in]`` in float64."""
    b, a = factors(before, layer)
    mean = torch.zeros(len(b), a.shape[1], dtype=torch.float64)
    for left, right in pieces(before, updates, layer):
        mean.addmm_(left, right)
    return mean
