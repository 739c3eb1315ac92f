"""``fedex``: mean A, mean B, plus the exact residual s (M - B A) as separate factors.

Singhal et al. 2024 (FedEx-LoRA, eq. 9) fold the residual into the frozen weight. Ours stays beside
it, so the base keeps its digest and a site can check what it runs on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.adapter import AdapterState, Factors
from common.config import RunConfig
from common.pet.lora import scale
from server.strategies.lora.products import adapted_layers, dense_mean, factors, pieces
from server.update import Updates

TOLERANCE = 1e-7
"""Singular values below this share of the layer's largest are rounding and are dropped."""


def exact_residual(
    before: AdapterState, after: AdapterState, updates: Updates, config: RunConfig
) -> AdapterState:
    """Add s (sum_i w_i B_i A_i - B A) to the residual of every adapted layer.

    Of few sites it is never built densely: the factors are stacked and recompressed, so its rank is
    at most (sites + 1) r more than before. Of so many that the stack would be larger than the layer,
    the layer is taken apart instead. The rank is never above min(out, in).
    """
    residual: dict[str, Factors] = {}
    s = scale(config)
    for layer in adapted_layers(before):
        b, a = factors(after, layer)
        mean = dense_mean(before, updates, layer)
        reach = s * float(torch.linalg.matrix_norm(mean, ord=2)) if mean.any() else 0.0
        old = before.residual.get(layer)
        inner = (len(updates.senders) + 1) * len(a) + (0 if old is None else len(old.right))
        if inner > min(mean.shape):
            mean.mul_(s).addmm_(b, a, alpha=-s)
            if old is not None:
                mean.addmm_(old.left.double(), old.right.double())
            u, sigma, vh = torch.linalg.svd(mean, full_matrices=False)
            factored = shortest(u, sigma, vh, reach)
        else:
            stack = [(s * left, right) for left, right in pieces(before, updates, layer)]
            stack.append((-s * b, a))
            if old is not None:
                stack.append((old.left.double(), old.right.double()))
            lefts, rights = zip(*stack, strict=True)
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
    return shortest(q_left @ u, sigma, vh @ q_right.T, reach)


def shortest(u: Tensor, sigma: Tensor, vh: Tensor, reach: float) -> Factors | None:
    """Return fp32 factors of what is more than rounding of a singular value decomposition, or None."""
    keep = int((sigma > TOLERANCE * max(reach, float(sigma[0]))).sum())
    if keep == 0:
        return None
    root = sigma[:keep].sqrt()
    return Factors(
        (u[:, :keep] * root).float().contiguous(), (root[:, None] * vh[:keep]).float().contiguous()
    )
