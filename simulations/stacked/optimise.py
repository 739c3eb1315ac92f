"""torch's optimisers over stacked adapters: one row for each site, with that site's own learning rate."""

from __future__ import annotations

import torch
from torch import Tensor

from common.sections import TrainConfig

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""AdamW's, as `torch.optim.AdamW` has them by default."""
_CLIP_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`."""


class StackedOptimizer:
    """AdamW (Loshchilov and Hutter 2019, alg. 2) or SGD with momentum over rows ``[S, N]``.

    A step is given the first sites' rows only: those of sites that have done their steps are left out,
    and neither they nor their moments move.
    """

    def __init__(self, rows: Tensor, train: TrainConfig) -> None:
        """Start fresh, as every round does."""
        self._train, self._steps = train, 0
        self._first = torch.zeros_like(rows)
        self._second = torch.zeros_like(rows) if train.optimizer == "adamw" else None

    def step(self, rows: Tensor, gradient: Tensor, rates: Tensor) -> None:
        """Move ``rows [k, N]`` in place by ``gradient [k, N]`` at learning rates ``[k, 1]`` or ``[k, N]``."""
        self._steps += 1
        count, decay = len(rows), self._train.weight_decay
        first = self._first[:count]
        if self._second is None:
            change = gradient.add(rows, alpha=decay) if decay else gradient
            if self._train.momentum:
                first.mul_(self._train.momentum).add_(change)
                change = first
            rows.sub_(rates * change)
            return
        second = self._second[:count]
        rows.mul_(1 - rates * decay)
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = second.sqrt().div_((1 - BETA2**self._steps) ** 0.5).add_(EPSILON)
        rows.sub_((rates / (1 - BETA1**self._steps)) * first / root)


def clip(gradient: Tensor, largest: float) -> None:
    """Shorten each row of ``[k, N]`` to an L2 norm of at most ``largest``, in place."""
    norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    gradient.mul_((largest / (norms + _CLIP_EPSILON)).clamp(max=1.0))
