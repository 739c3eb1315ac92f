"""Attention folded over sites is torch's own, site by site, value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import vmap
from torch.nn import functional

from simulations.stacked.attention import FoldedAttention

SITES, SHAPE = 3, (2, 4, 5, 8)


def tensors(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}])
def test_each_site_is_attended_to_by_itself(options: dict[str, Any]) -> None:
    q, k, v = tensors(SITES, *SHAPE)
    with FoldedAttention():
        together = vmap(lambda *of: functional.scaled_dot_product_attention(*of, **options))(q, k, v)
    alone = torch.stack(
        [functional.scaled_dot_product_attention(*of, **options) for of in zip(q, k, v, strict=True)]
    )
    torch.testing.assert_close(together, alone)
    weights = torch.arange(together.numel()).reshape(together.shape) / together.numel()
    mine = torch.autograd.grad((together * weights).sum(), (q, k, v))
    torch.testing.assert_close(mine, torch.autograd.grad((alone * weights).sum(), (q, k, v)))


def test_what_all_sites_have_alike_is_attended_to_by_each() -> None:
    q, _, _ = tensors(SITES, *SHAPE)
    _, k, v = tensors(*SHAPE)
    mask = torch.rand(SHAPE[0], 1, SHAPE[2], SHAPE[2], generator=torch.Generator().manual_seed(2)) < 0.7
    mask[..., 0] = True

    def attend(q: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with FoldedAttention():
        together = vmap(attend)(q)
    torch.testing.assert_close(together, torch.stack([attend(own) for own in q]))


def test_without_a_map_it_says_what_plain_attention_says() -> None:
    q, k, v = (t.detach() for t in tensors(*SHAPE))
    with FoldedAttention():
        same = functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(functional.scaled_dot_product_attention(q, k, v), same)
