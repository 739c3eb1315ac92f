"""Where a backbone can be cut: stem, ordered blocks, pooling, head, for each family we support.

Every timm network here is the composition ``head(pool(block_n(... block_1(stem(x)))))``; PET scopes and
the frozen-prefix split both count blocks from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from common.errors import ModelError
from common.model.class_token import run_last_block


@dataclass(frozen=True)
class Architecture:
    """How one network is cut; blocks are named, so replacing a layer inside one is seen."""

    family: str
    stem: Callable[[Any, Tensor], Tensor]
    blocks: tuple[str, ...]
    pool: Callable[[Any, Tensor], Tensor]
    """From the last block's output to the features ``[B, D]`` the head reads."""
    between: Callable[[Any, str, Tensor], Tensor] | None = None
    finish: Callable[[Any, str, Tensor], Tensor] | None = None
    """Runs the last block as far as ``pool`` reads what it puts out."""

    def run(self, net: nn.Module, x: Tensor, start: int, stop: int, to_pool: bool = False) -> Tensor:
        """Apply blocks ``start`` to ``stop`` (exclusive); ``to_pool``: only `pool` reads the last one."""
        for name in self.blocks[start:stop]:
            x = self.between(net, name, x) if self.between else x
            last = to_pool and name == self.blocks[-1]
            x = self.finish(net, name, x) if last and self.finish else net.get_submodule(name)(x)
        return x

    def last(self, count: int) -> tuple[str, ...]:
        """Return the names of the last ``count`` blocks.

        Raises:
            ModelError: if the network has fewer blocks.
        """
        if count > len(self.blocks):
            raise ModelError(
                f"pet.scope = 'last-{count}' asks for more blocks than the backbone has",
                found=f"{len(self.blocks)} blocks",
                fix=f"set pet.scope = 'last-{len(self.blocks)}' or 'all'",
            )
        return self.blocks[len(self.blocks) - count :]


def _numbered(net: nn.Module, parent: str) -> Iterable[str]:
    return (f"{parent}.{name}" for name, _ in net.get_submodule(parent).named_children())


def _vit(net: Any) -> Architecture:
    def stem(net: Any, x: Tensor) -> Tensor:
        # Without a class token the patches lie transposed in memory, and would through every block.
        return net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(x)))).contiguous()

    def pool(net: Any, x: Tensor) -> Tensor:
        return net.forward_head(net.norm(x), pre_logits=True)

    return Architecture("vit", stem, tuple(_numbered(net, "blocks")), pool, finish=run_last_block)


def _resnet(net: Any) -> Architecture:
    def stem(net: Any, x: Tensor) -> Tensor:
        return net.maxpool(net.act1(net.bn1(net.conv1(x))))

    blocks = tuple(name for i in range(1, 5) for name in _numbered(net, f"layer{i}"))
    return Architecture("resnet", stem, blocks, lambda net, x: net.forward_head(x, pre_logits=True))


def _efficientnet(net: Any) -> Architecture:
    def stem(net: Any, x: Tensor) -> Tensor:
        return net.bn1(net.conv_stem(x))

    def pool(net: Any, x: Tensor) -> Tensor:
        return net.forward_head(net.bn2(net.conv_head(x)), pre_logits=True)

    blocks = tuple(name for stage in _numbered(net, "blocks") for name in _numbered(net, stage))
    return Architecture("efficientnet", stem, blocks, pool)


def _densenet(net: Any) -> Architecture:
    names = [name for name, _ in net.features.named_children()]
    first, last = names.index("denseblock1"), names.index("norm5")

    def stem(net: Any, x: Tensor) -> Tensor:
        return net.features[:first](x)

    def pool(net: Any, x: Tensor) -> Tensor:
        return net.forward_head(net.features[last:](x), pre_logits=True)

    blocks = tuple(f"features.{name}" for name in names[first:last])
    return Architecture("densenet", stem, blocks, pool)


def _staged(net: Any, family: str, stages: str, stem: str, norm: str) -> Architecture:
    """Cut a network of stages, each of which downsamples before its first block."""

    def downsample(net: Any, name: str, x: Tensor) -> Tensor:
        stage, position = name.split(".blocks.")
        return net.get_submodule(stage).downsample(x) if position == "0" else x

    def pool(net: Any, x: Tensor) -> Tensor:
        return net.forward_head(net.get_submodule(norm)(x), pre_logits=True)

    blocks = tuple(n for s in _numbered(net, stages) for n in _numbered(net, f"{s}.blocks"))
    return Architecture(family, lambda net, x: net.get_submodule(stem)(x), blocks, pool, downsample)


def _convnext(net: Any) -> Architecture:
    return _staged(net, "convnext", "stages", "stem", "norm_pre")


def _swin(net: Any) -> Architecture:
    return _staged(net, "swin", "layers", "patch_embed", "norm")


_FAMILIES: dict[str, Callable[[Any], Architecture]] = {
    "VisionTransformer": _vit,
    "ResNet": _resnet,
    "EfficientNet": _efficientnet,
    "DenseNet": _densenet,
    "ConvNeXt": _convnext,
    "SwinTransformer": _swin,
}


def architecture_of(net: nn.Module) -> Architecture:
    """Return how ``net`` is cut; an unknown family is one uncuttable piece.

    Such a network can be tuned with ``pet.scope = "all"``, not with ``last-K``.
    """
    build = _FAMILIES.get(type(net).__name__)
    if build is not None:
        return build(net)
    return Architecture("other", lambda net, x: x, (), _whole)


def _whole(net: Any, x: Tensor) -> Tensor:
    return net.forward_head(net.forward_features(x), pre_logits=True)
