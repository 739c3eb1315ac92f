"""FedAdam: the mean update as a gradient for Adam at the server (Reddi et al. 2021, alg. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from common.adapter import AdapterState
from common.sections import StrategyConfig


def adam_step(
    state: AdapterState, mean: dict[str, Tensor], memory: dict[str, Tensor], strategy: StrategyConfig
) -> tuple[AdapterState, dict[str, Tensor]]:
    """Move by eta m / (sqrt(v) + tau), with m and v the moments of the mean update.

    m and v start at zero and tau^2, as in the paper. A value with no update this round (a head row
    nobody annotates, a factor out of turn) keeps its place and its moments: momentum does not
    move what nobody trained.
    """
    tensors, memory = dict(state.tensors), dict(memory)
    for name, delta in mean.items():
        m = memory.get(f"m:{name}", torch.zeros_like(delta))
        v = memory.get(f"v:{name}", torch.full_like(delta, strategy.tau**2))
        touched = _rows_touched(delta)
        m_new = strategy.beta1 * m + (1 - strategy.beta1) * delta
        v_new = strategy.beta2 * v + (1 - strategy.beta2) * delta.square()
        step = strategy.server_lr * m_new / (v_new.sqrt() + strategy.tau)
        moved = (tensors[name].double() + step).float()
        tensors[name] = torch.where(touched, moved, tensors[name])
        memory[f"m:{name}"] = torch.where(touched, m_new, m)
        memory[f"v:{name}"] = torch.where(touched, v_new, v)
    return AdapterState(tensors, state.residual), memory


def _rows_touched(delta: Tensor) -> Tensor:
    """Mark rows in which anything changed, broadcast to the tensor's shape."""
    rows = delta.reshape(delta.shape[0], -1).ne(0).any(dim=1)
    return rows.reshape(-1, *[1] * (delta.ndim - 1)).expand_as(delta)
