"""A LoRA layer as one product: the update is added to the frozen weight once a step, not to every token.

With N tokens, y = x (W + s B A)^T + b costs one large product and r I O multiplications for the merged
weight, against two passes more over ``[N, O]`` for the separate branch; the gradients of A and B are
those of Hu et al. 2021, eq. 3, without ever forming that of W. The merged weight stays until the backward
pass: while it trains, a model takes the memory of its adapted layers once more.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from common.model.product import QuickLinear, is_plain_fp32, linear, product


class _Merged(torch.autograd.Function):
    """y = x (W + s B A)^T + b, with gradients for x, A and B only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        whole = merged(weight, a, b, scale)
        ctx.save_for_backward(x, whole, a, b)
        ctx.scale = scale
        return linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, whole, a, b = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, _ = ctx.needs_input_grad
        tokens, flat = x.flatten(0, -2), grad.flatten(0, -2)  # [N, I], [N, O]
        of_x = linear(grad, whole.t()) if wants_x else None
        of_a = product(product(flat, b).t(), tokens) * ctx.scale if wants_a else None  # [r, I]
        of_b = product(linear(tokens, a).t(), flat).t() * ctx.scale if wants_b else None  # [O, r]
        return of_x, None, None, of_a, of_b, None


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return W + s B A: ``[O, I]`` of ``[O, I]``, ``[r, I]`` and ``[O, r]`` (Hu et al. 2021, eq. 3)."""
    return torch.addmm(weight, b, a, alpha=scale)


class FusedLinear(PeftLinear):
    """peft's LoRA layer, computed in one product where that is exact and cheaper; else peft's own forward.

    Parameters, names and saved adapters are peft's. It falls back under dropout, autocast and the
    transforms of ``torch.func``, where the frozen weight is trained, and for few tokens.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``[..., I]`` to ``[..., O]``."""
        if args or kwargs or not self._fits(x):
            return super().forward(x, *args, **kwargs)
        base, (name,) = self._base(), self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        apply: Any = _Merged.apply
        out: Tensor = apply(x, base.weight, base.bias, a, b, self.scaling[name])
        return out

    def _base(self) -> nn.Linear:
        return cast(nn.Linear, self.base_layer)

    def _fits(self, x: Tensor) -> bool:
        base = self._base()
        return (
            x.numel() // base.in_features >= _worth_merging(base.in_features, base.out_features)
            and self._is_one_matrix()
            and not base.weight.requires_grad
            and not (base.bias is not None and base.bias.requires_grad)
            and is_plain_fp32(x, base.weight)
        )

    def whole(self) -> tuple[Tensor, Tensor | None] | None:
        """Return W + s B A ``[O, I]``, with all its gradients, and the bias; None as `whole_layer`."""
        base = self._base()
        if not self._is_one_matrix() or not is_plain_fp32(base.weight):
            return None
        (name,) = self.active_adapters
        a, b = (cast(Tensor, layers[name].weight) for layers in (self.lora_A, self.lora_B))
        return merged(base.weight, a, b, self.scaling[name]), base.bias

    def _is_one_matrix(self) -> bool:
        return (
            not self.disable_adapters
            and not self.merged
            and len(self.active_adapters) == 1
            and not any(self._drops(name) for name in self.active_adapters)
        )

    def _drops(self, name: str) -> bool:
        dropout = self.lora_dropout[name]
        return isinstance(dropout, nn.Dropout) and dropout.p > 0 and self.training


def whole_layer(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return weight ``[O, I]`` and bias ``[O]`` that do all a layer does, W + s B A where it has LoRA.

    None where no such matrix does it, or none without loss: under dropout, a forward hook, other kinds of
    PET, and, with LoRA, where products are rounded below fp32.
    """
    hooked = (part._forward_hooks or part._forward_pre_hooks for part in layer.modules())
    if any(hooked):
        return None
    if type(layer) in (nn.Linear, QuickLinear):
        return cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
    return layer.whole() if isinstance(layer, FusedLinear) else None


def fuse(net: nn.Module) -> int:
    """Let every plain LoRA layer that peft has put around a linear one compute in one product.

    DoRA and peft's other variants, layers with a bias on B and convolutions keep peft's forward. Returns
    how many layers changed.
    """
    layers = [module for module in net.modules() if type(module) is PeftLinear and _is_plain(module)]
    for layer in layers:
        layer.__class__ = FusedLinear
    return len(layers)


def _is_plain(layer: PeftLinear) -> bool:
    return (
        isinstance(layer.base_layer, nn.Linear)
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and not layer.fan_in_fan_out
    )


def _worth_merging(into: int, out: int) -> float:
    """Tokens from which r I O multiplications for the merged weight are fewer than N r (I + O)."""
    return into * out / (into + out)
