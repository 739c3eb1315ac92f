"""Linear layers by the faster of the two libraries torch carries, in the same precision.

In fp32 torch multiplies matrices with MKL, which on processors of other makers than Intel reaches about
half of what oneDNN, the library behind its convolutions, does. The operator is the one torch's compiler
emits for a linear layer. Which library a product goes to depends on the processor and on shapes alone, so
a repeated round gives the same bits.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import mm_flop, register_flop_formula

MAKERS = ("AuthenticAMD", "HygonGenuine")
"""Makers of x86 processors, as these name themselves, on which oneDNN is the faster."""
_WORK = 1 << 20
"""Multiplications below which what a call to oneDNN costs is not earned back."""

_plain = False


@contextmanager
def plain_products() -> Iterator[None]:
    """Leave every product to torch's own choice until the block ends, to compare with."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


@cache
def onednn_is_faster() -> bool:
    """Whether this processor is of a maker for which oneDNN is chosen, and torch has its operator."""
    return (
        processor_maker() in MAKERS and torch.backends.mkldnn.is_available() and _onednn_linear() is not None
    )


def processor_maker() -> str:
    """Return what the processor calls its maker, ``GenuineIntel`` or ``AuthenticAMD``; empty if unknown."""
    told = Path("/proc/cpuinfo")
    if told.is_file():
        lines = told.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    return next((maker for maker in (*MAKERS, "GenuineIntel") if maker in platform.processor()), "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x W^T + b``: ``[..., I]`` by ``[O, I]`` to ``[..., O]``; nothing is kept for a gradient."""
    if not _suits(x, weight):
        return functional.linear(x, weight, bias)
    return _by_onednn(x, weight, bias)


def product(x: Tensor, y: Tensor) -> Tensor:
    """Return the matrix product ``[N, K] @ [K, M]``, of whatever strides."""
    return linear(x, y.t())


class _Linear(torch.autograd.Function):
    """A linear layer whose gradients are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        flat = grad.flatten(0, -2)  # [N, O]
        of_x = linear(grad, weight.t()) if wants_x else None
        of_weight = product(flat.t(), x.flatten(0, -2)) if wants_weight else None
        return of_x, of_weight, flat.sum(0) if wants_bias else None


class QuickLinear(nn.Linear):
    """``nn.Linear`` with the faster product; parameters, names and values are those of ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., I]`` to ``[..., O]``."""
        if not _suits(input, self.weight):
            return functional.linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return _by_onednn(input, self.weight, self.bias)
        apply: Any = _Linear.apply
        out: Tensor = apply(input, self.weight, self.bias)
        return out


def quicken(net: nn.Module) -> int:
    """Give every plain linear layer of a network the faster product, where there is one.

    Subclasses of ``nn.Linear`` and layers with hooks keep theirs. Returns how many layers changed.
    """
    if not onednn_is_faster():
        return 0
    plain = [module for module in net.modules() if type(module) is nn.Linear]
    for module in plain:
        module.__class__ = QuickLinear
    return len(plain)


def is_plain_fp32(*tensors: Tensor) -> bool:
    """Whether tensors are fp32, and neither autocast nor a transform of ``torch.func`` is at work."""
    return (
        all(tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and not torch._C._are_functorch_transforms_active()
    )


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.numel() * len(weight) >= _WORK
        and x.device.type == "cpu"
        and not _plain
        and onednn_is_faster()
        and is_plain_fp32(x, weight)
    )


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _onednn_linear() -> Any:
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


if _onednn_linear() is not None:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: Any, weight: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        """Tell torch's counter of floating-point operations what it cannot see: 2 N I O."""
        return mm_flop((x[:-1].numel(), x[-1]), (x[-1], weight[0]))
