"""Attention over a stack of sites: the sites go into the batch, so the plain kernel runs once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class FoldedAttention(TorchFunctionMode):
    """While on, scaled dot-product attention folds what `torch.func.vmap` maps over into its batch.

    torch has no batching rule for the kernel of a CPU and would call it once for each site. Attention
    holds no parameter, so studies of several sites are studies like others. Its gradient is known inside a
    map alone, over tensors that are mapped over.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, or the folded attention in its place."""
        given = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **given)
        named = {**dict(zip(_ARGUMENTS, args, strict=False)), **given}
        q, k, v = (named.pop(name) for name in _ARGUMENTS[:3])
        mask = named.pop("attn_mask", None)
        return _Folded.apply(q, k, v, mask, named)  # type: ignore[no-untyped-call]


class _Folded(torch.autograd.Function):
    """Attention with a rule for vmap, which is all of it that ever runs."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, named: dict[str, Any]) -> Tensor:
        """Attend as torch does; nothing is mapped over."""
        return functional.scaled_dot_product_attention(q, k, v, mask, **named)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing: the gradient is that of what the rule for vmap calls."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        named: dict[str, Any],
    ) -> tuple[Tensor, int]:
        """Attend over ``[S B, heads, T, d]`` and return ``[S, B, heads, T, d]``."""
        sites = info.batch_size

        def fold(tensor: Tensor, dim: int | None) -> Tensor:
            whole = tensor.expand(sites, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return whole.flatten(0, 1)

        q, k, v = (fold(t, dim) for t, dim in zip((q, k, v), in_dims[:3], strict=True))
        if mask is not None:
            mask = fold(mask, in_dims[3])
        out = functional.scaled_dot_product_attention(q, k, v, mask, **named)
        return out.unflatten(0, (sites, -1)), 0
