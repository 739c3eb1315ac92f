"""Which layers a method adapts: target names resolved against one backbone, by name or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from common.errors import ModelError, TargetError
from common.model.architecture import Architecture
from common.model.qkv import QKV_PARTS, SplitQKV
from common.sections import PetConfig

_FEED_FORWARD = ("fc1", "fc2")


@dataclass(frozen=True)
class TextCut:
    """Where a text encoder can be cut, and what its layers are called."""

    family: str
    blocks: tuple[str, ...]
    targets: Mapping[str, str]
    """``q, k, v, proj, fc1, fc2`` -> the path of that layer within a block."""

    def last(self, count: int) -> tuple[str, ...]:
        """Return the names of the last ``count`` blocks.

        Raises:
            ModelError: if the encoder has fewer.
        """
        if count > len(self.blocks):
            raise ModelError(
                f"pet.scope = 'last-{count}' asks for more blocks than the text encoder has",
                found=f"{len(self.blocks)} blocks",
                fix=f"set pet.scope = 'last-{len(self.blocks)}' or 'all', or pet.towers = 'vision'",
            )
        return self.blocks[len(self.blocks) - count :]

    def named(self, target: str) -> list[str]:
        """Return the full names of the layers a target stands for; none where it is no such name."""
        paths = [self.targets[t] for t in (QKV_PARTS if target == "qkv" else (target,)) if t in self.targets]
        return [f"{block}.{path}" for block in self.blocks for path in paths]


Cut = Architecture | TextCut
"""How a tower is cut into blocks."""


def scope_prefixes(arch: Cut, scope: str) -> tuple[str, ...] | None:
    """Return the blocks in scope, or None when every block is.

    Raises:
        TargetError: if the backbone cannot be cut into blocks.
    """
    if scope == "all":
        return None
    if not arch.blocks:
        raise TargetError(
            f"pet.scope = {scope!r} needs a backbone that can be cut into blocks",
            found=f"family {arch.family!r}",
            fix="set pet.scope = 'all'",
        )
    return arch.last(int(scope.partition("-")[2]))


def blocks_in_scope(arch: Cut, scope: str) -> tuple[str, ...]:
    """Return the names of the adapted blocks."""
    prefixes = scope_prefixes(arch, scope)
    return arch.blocks if prefixes is None else prefixes


def in_scope(name: str, arch: Cut, scope: str) -> bool:
    """Whether a module or parameter lies in an adapted block or, for ``all``, anywhere.

    With ``last-K`` the layers after the last block (final norms) count as in scope.
    """
    prefixes = scope_prefixes(arch, scope)
    if prefixes is None or any(name.startswith(f"{p}.") for p in prefixes):
        return True
    return is_final_norm(name)


def is_final_norm(name: str) -> bool:
    """Whether a parameter belongs to the norm between the last block and the head."""
    return name.startswith(("norm.", "fc_norm.", "features.norm5.", "bn2.", "head.norm."))


def resolve_targets(net: nn.Module, arch: Cut, pet: PetConfig, default: Sequence[str]) -> list[str]:
    """Return the full names of the layers to adapt, splitting fused qkv where a part is asked for.

    A target is a module's last name (``qkv``, ``fc1``), or ``q``, ``k``, ``v`` on a fused ViT;
    only layers inside blocks count, so ``proj`` is never the patch embedding's. A text encoder's layers
    answer to the same names, ``qkv`` to all three.

    Raises:
        TargetError: if any single target matches nothing in scope, or overlaps another.
    """
    wanted = list(pet.targets or default)
    parts = [t for t in wanted if t in QKV_PARTS]
    if parts and "qkv" in wanted:
        raise TargetError("pet.targets names both 'qkv' and a part of it", found=", ".join(wanted))
    if parts and isinstance(arch, Architecture):
        _split_fused(net, arch, pet.scope)
    layers = _layers(net, arch, pet.scope)
    chosen: list[str] = []
    for target in wanted:
        matches = [n for n, m in layers.items() if _matches(n, m, target, arch)]
        if not matches:
            known = sorted({n.rpartition(".")[2] for n in layers})
            raise TargetError(
                f"pet.targets: {target!r} matches no layer of the backbone in scope {pet.scope!r}",
                found=", ".join(known[:12]) or "no layers",
                fix="name one of the layers found, or leave pet.targets empty",
            )
        chosen += matches
    return list(dict.fromkeys(chosen))


def known_targets(net: nn.Module, arch: Cut, pet: PetConfig) -> tuple[str, ...]:
    """Return those of ``pet.targets`` that name a layer here; nothing is split yet."""
    layers = _layers(net, arch, pet.scope)
    fused = any(name.endswith(".attn.qkv") for name in layers)
    return tuple(
        target
        for target in pet.targets
        if (fused and target in QKV_PARTS) or any(_matches(n, m, target, arch) for n, m in layers.items())
    )


def is_feed_forward(name: str, arch: Cut) -> bool:
    """Whether a layer belongs to a block's MLP."""
    if isinstance(arch, TextCut):
        return name in arch.named("fc1") + arch.named("fc2")
    return name.rpartition(".")[2] in _FEED_FORWARD


def has_attention(arch: Cut) -> bool:
    """Whether the blocks are a transformer's, with the layers the published targets name."""
    return isinstance(arch, TextCut) or arch.family in ("vit", "swin")


def default_targets(arch: Cut, vit: Sequence[str]) -> tuple[str, ...]:
    """Return the published targets for a ViT; for a CNN every ungrouped convolution in a block.

    A ConvNeXt block's ungrouped layers are its MLP's, linear or 1 x 1 convolutions by variant.
    """
    if arch.family == "convnext":
        return ("fc1", "fc2")
    return tuple(vit) if has_attention(arch) else ("conv",)


def _layers(net: nn.Module, arch: Cut, scope: str) -> dict[str, nn.Module]:
    """The layers a method may adapt: those of the blocks in scope, or all but the head without blocks."""
    blocks = tuple(f"{block}." for block in blocks_in_scope(arch, scope))
    head = getattr(net, "pretrained_cfg", {}).get("classifier")
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and (name.startswith(blocks) if blocks else name != head)
    }


def _matches(name: str, module: nn.Module, target: str, arch: Cut) -> bool:
    if isinstance(arch, TextCut) and (named := arch.named(target)):
        return name in named
    if target == "conv":
        return isinstance(module, nn.Conv2d) and module.groups == 1 and name.count(".") > 0
    grouped = isinstance(module, nn.Conv2d) and module.groups > 1
    return not grouped and (name == target or name.endswith(f".{target}"))


def _split_fused(net: nn.Module, arch: Architecture, scope: str) -> None:
    for block in blocks_in_scope(arch, scope):
        attention = getattr(net.get_submodule(block), "attn", None)
        fused = getattr(attention, "qkv", None)
        if isinstance(fused, nn.Linear):
            attention.qkv = SplitQKV(fused)  # type: ignore[union-attr]
