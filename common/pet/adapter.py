"""``adapter``: a bottleneck h + W2 s(W1 h) after each block's MLP.

Houlsby et al. 2019, section 2.1, placed as Pfeiffer et al. 2021 do: once per block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.config import RunConfig
from common.errors import TargetError
from common.pet.targets import Cut, TextCut, blocks_in_scope, has_attention


class Bottleneck(nn.Module):
    """A residual two-layer module that starts as the identity (W2 = 0)."""

    def __init__(self, width: int, bottleneck: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.normal_(self.down.weight, std=width**-0.5, generator=generator)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to itself, or ``[B, D, H, W]`` over its channels."""
        if x.ndim != 4:
            return x + self.up(functional.gelu(self.down(x)))
        last = x.movedim(1, -1)
        return (last + self.up(functional.gelu(self.down(last)))).movedim(-1, 1)


def insert(net: Any, arch: Cut, config: RunConfig) -> None:
    """Hang one bottleneck behind each block's MLP (behind the whole block on a CNN).

    Raises:
        TargetError: if the backbone has no blocks we know.
    """
    blocks = blocks_in_scope(arch, config.pet.scope)
    if not blocks:
        raise TargetError(
            "pet.method = 'adapter' needs a backbone that can be cut into blocks",
            found=f"family {arch.family!r}",
        )
    if arch.family == "densenet":
        raise TargetError(
            "pet.method = 'adapter' has no place in a DenseNet: its blocks concatenate",
            fix="use lora, bitfit or norm on this backbone",
        )
    places = [net.get_submodule(_place(block, arch)) for block in blocks]
    if isinstance(arch, TextCut):
        widths = [place.out_features for place in places]
    else:
        widths = _widths(net, places, config.data.image_size)
    generator = torch.Generator().manual_seed(config.seed)
    for place, width in zip(places, widths, strict=True):
        place.add_module("bottleneck", Bottleneck(width, config.pet.bottleneck, generator))
        place.register_forward_hook(lambda place, args, out: place.bottleneck(out))


def _place(block: str, arch: Cut) -> str:
    """Name what a block's bottleneck stands behind: the MLP, whose last layer a text encoder ends with."""
    if isinstance(arch, TextCut):
        return f"{block}.{arch.targets['fc2']}"
    return f"{block}.mlp" if has_attention(arch) else block


def _widths(net: Any, places: Sequence[nn.Module], image_size: int) -> list[int]:
    """Return the channels each place puts out, read off one blank image."""
    seen: list[int] = []
    hooks = [
        place.register_forward_hook(
            lambda place, args, out: seen.append(out.shape[1 if out.ndim == 4 else -1])
        )
        for place in places
    ]
    channels = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels
    with torch.no_grad():
        net.eval()(torch.zeros(1, channels, image_size, image_size))
    for hook in hooks:
        hook.remove()
    return seen
