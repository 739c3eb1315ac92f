"""``fedex``: mean A, mean B, plus the exact residual s (M - B A) as separate factors.

Singhal et al. 2024 (FedEx-LoRA, eq. 9) fold the residual into the frozen weight. Ours stays beside
it, so the base keeps its digest and a site can check what it runs on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.adapter import AdapterState, Factors
from common.config import RunConfig
from common.pet.lora import scale
from server.strategies.lora.products import adapted_layers, factors, stacked
from server.update import SiteUpdate

TOLERANCE = 1e-7
"""Singular values below this share of the layer's largest are rounding and are dropped."""


def exact_residual(
    before: AdapterState, after: AdapterState, updates: Sequence[SiteUpdate], config: RunConfig
) -> AdapterState:
    """Add s (sum_i w_i B_i A_i - B A) to the residual of every adapted layer.

    The residual is never built densely: its factors are stacked and recompressed, so its rank
    is at most (sites + 1) r more than before and never above min(out, in).
    """
    residual: dict[str, Factors] = {}
    s = scale(config)
    for layer in adapted_layers(before):
        left, right = stacked(before, updates, layer)
        b, a = factors(after, layer)
        lefts, rights = [s * left, -s * b], [right, a]
        if layer in before.residual:
            lefts.append(before.residual[layer].left.double())
            rights.append(before.residual[layer].right.double())
        reach = float(torch.linalg.matrix_norm(s * left @ right, ord=2)) if right.numel() else 0.0
        factored = compress(torch.cat(lefts, dim=1), torch.cat(rights, dim=0), reach)
        if factored is not None:
            residual[layer] = factored
    return AdapterState(after.tensors, residual)


def compress(left: Tensor, right: Tensor, reach: float) -> Factors | None:
    """Return the shortest fp32 factors of ``left [out, K] @ right [K, in]``, or None if it is zero.

    ``reach`` is the size against which rounding is judged.
    """
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, sigma, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    keep = int((sigma > TOLERANCE * max(reach, float(sigma[0]))).sum())
    if keep == 0:
        return None
    root = sigma[:keep].sqrt()
    return Factors(
        (q_left @ u[:, :keep] * root).float().contiguous(),
        ((root[:, None] * vh[:keep]) @ q_right.T).float().contiguous(),
    )
