"""The optimiser both objectives share: AdamW, warm-up, cosine, clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Schedule:
    """Steps parameters along a warm-up of a twentieth and a cosine to zero."""

    def __init__(self, parameters: Sequence[nn.Parameter], peak: float, steps: int) -> None:
        self._parameters, self._peak, self._steps = list(parameters), peak, steps
        self._optimizer = torch.optim.AdamW(self._parameters, lr=peak, betas=(0.9, 0.95), weight_decay=0.05)

    def step(self, loss: Tensor, step: int) -> None:
        """Take one step down the loss."""
        warmup = max(1, self._steps // 20)
        factor = 0.5 * (1 + math.cos(math.pi * step / self._steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * ((step + 1) / warmup if step < warmup else factor)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
