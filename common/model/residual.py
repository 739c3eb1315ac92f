"""fedex's residual: a low-rank matrix laid over a frozen layer by a forward hook."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.adapter import Factors
from common.errors import SchemaError

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


def residual_hook(net: nn.Module, name: str, factors: Factors, device: torch.device) -> Hook:
    """Return the hook that adds ``left @ right`` to what layer ``name`` computes.

    Raises:
        SchemaError: if the network has no such layer, or the factors do not fit it.
    """
    left, right = factors.left.to(device), factors.right.to(device)
    base = _adapted_layer(net, name, factors)

    def add_linear(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + functional.linear(functional.linear(args[0], right), left)

    if not isinstance(base, nn.Conv2d):
        return add_linear
    first = copy(base)  # with the layer's stride and padding, also where timm pads on the fly
    kernel = right.reshape(right.shape[0], base.in_channels, *base.kernel_size)
    first._parameters = {"weight": nn.Parameter(kernel, requires_grad=False), "bias": None}

    def add_conv(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + functional.conv2d(first.forward(args[0]), left[:, :, None, None])

    return add_conv


def _adapted_layer(net: nn.Module, name: str, factors: Factors) -> Any:
    """Return the frozen layer a residual belongs to, if the residual fits it."""
    try:
        layer = net.get_submodule(name)
    except AttributeError:
        raise SchemaError("a residual names a layer the backbone does not have", found=name) from None
    base = getattr(layer, "base_layer", layer)
    weight = getattr(base, "weight", None)
    (out, rank), (inner, into) = factors.left.shape, factors.right.shape
    if weight is None or rank != inner or (out, into) != (len(weight), weight[0].numel()):
        raise SchemaError(
            f"the residual of layer {name!r} does not fit it",
            found=f"{tuple(factors.left.shape)} @ {tuple(factors.right.shape)}",
        )
    return base
