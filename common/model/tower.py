"""One encoder of a model: what is its frozen base, what is trained in it, and the names of both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from common.adapter import Factors
from common.model.qkv import QKV_PARTS
from common.model.residual import residual_hook

_WRAPPING = re.compile(r"\.(base_layer|default)(?=\.|$)")
_QKV_PART = re.compile(rf"\.qkv\.({'|'.join(QKV_PARTS)})\.")


class Tower:
    """A network, whatever PET has wrapped or split in it, under its plain names behind a ``prefix``."""

    def __init__(self, net: Any, prefix: str = "", head: str = "") -> None:
        """Take the network as it was loaded, before PET; ``head`` names what in it is no base."""
        self.net, self.prefix = net, prefix
        outside = (f"{head}.",) if head else ()
        self.base_names = [f"{prefix}{n}" for n in net.state_dict() if not n.startswith(outside)]
        self._hooks: list[RemovableHandle] = []
        self.laid: tuple[str, ...] = ()
        """Layers over which a residual lies, by the network's own names."""

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter with its plain name."""
        for name, parameter in sorted(self.net.named_parameters()):
            yield f"{self.prefix}{_WRAPPING.sub('', name)}", parameter

    def base_parameters(self) -> tuple[str, ...]:
        """The base's parameters under the adapter's names, also where PET has wrapped or split a layer."""
        base = {*self.base_names}
        names = sorted(name for name, _ in self.parameters())
        return tuple(n for n in names if n in base or _QKV_PART.sub(".qkv.", n) in base)

    def added(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is not the base's own: head, PET and its constants, with plain names."""
        base = {*self.base_names}
        buffers = self.net.named_buffers(remove_duplicate=False)
        for name, tensor in (*self.net.named_parameters(), *buffers):
            plain = f"{self.prefix}{_WRAPPING.sub('', name)}"
            if plain not in base and _QKV_PART.sub(".qkv.", plain) not in base:
                yield plain, tensor

    def base_tensors(self) -> dict[str, Tensor]:
        """The base's tensors under their original names, whatever PET has wrapped or split."""
        live: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.net.state_dict().items():
            plain = f"{self.prefix}{_WRAPPING.sub('', name)}"
            if match := _QKV_PART.search(plain):
                fused = plain.replace(match.group(0), ".qkv.")
                if plain.rpartition(".")[2] in ("weight", "bias") and "lora" not in plain:
                    parts.setdefault(fused, {})[match.group(1)] = tensor
            else:
                live[plain] = tensor
        for fused, qkv in parts.items():
            live[fused] = torch.cat([qkv[part] for part in QKV_PARTS])
        return {name: live[name] for name in self.base_names}

    @property
    def base_numel(self) -> int:
        """Number of parameters of the base, without the head and without buffers."""
        names = {name for name, _ in self.parameters()}
        split = {_QKV_PART.sub(".qkv.", n) for n in names}
        return sum(t.numel() for n, t in self.base_tensors().items() if n in names or n in split)

    def own(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that are of this tower, as the network itself calls them."""
        known = {name for name, _ in self.parameters()}
        return [name.removeprefix(self.prefix) for name in names if name in known]

    def lay(self, residual: Mapping[str, Factors], device: torch.device) -> None:
        """Lay fedex's residual over this tower's layers, by the network's own names; the last one goes.

        Raises:
            SchemaError: if it fits no layer.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.laid = ()
        laid = {name: residual_hook(self.net, name, factors, device) for name, factors in residual.items()}
        for name, add in laid.items():
            self._hooks.append(self.net.get_submodule(name).register_forward_hook(add))
        self.laid = tuple(laid)
