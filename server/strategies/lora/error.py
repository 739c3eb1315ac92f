"""The error meter: how far the applied low-rank update is from the mean of the sites' products."""

from __future__ import annotations

import math

import torch

from common.adapter import AdapterState
from common.config import RunConfig
from common.pet.lora import scale
from server.strategies.lora.products import adapted_layers, dense_mean, factors
from server.update import Updates


def aggregation_error(
    before: AdapterState, after: AdapterState, updates: Updates, config: RunConfig
) -> float:
    """Return ||M - M_applied|| / ||M|| (Frobenius, over all adapted layers).

    M = sum_i w_i B_i A_i is what the sites agreed on; M_applied is B A after the round, plus what
    the round added to the residual. Averaging both factors errs by the weighted covariance of
    B_i and A_i; with one factor frozen, or with the residual, the error is rounding.
    """
    gap = size = 0.0
    s = scale(config)
    for layer in adapted_layers(before):
        target = dense_mean(before, updates, layer)
        size += float(torch.linalg.matrix_norm(target) ** 2)
        b, a = factors(after, layer)
        target.addmm_(b, a, alpha=-1)
        for sign, state in ((1, after), (-1, before)):
            if layer in state.residual:
                kept = state.residual[layer]
                target.addmm_(kept.left.double(), kept.right.double(), alpha=-sign / s)
        gap += float(torch.linalg.matrix_norm(target) ** 2)
    return math.sqrt(gap / size) if size else 0.0
