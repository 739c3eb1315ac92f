"""A dual adapter: the released one, frozen, and beside it a low-rank update that stays at one site.

Every linear layer in the blocks that ``pet.scope`` names gives W x + s B A x, where W already holds what
was trained together and B, A are the site's own (Yang et al. 2024, FedDPA, with Hu et al. 2021, eq. 3 for
both). B starts at zero, so the site begins with exactly the released model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.adapter import AdapterState, schema_of
from common.errors import TargetError
from common.model.build import CxrModel
from common.model.qkv import SplitQKV
from common.pet.targets import blocks_in_scope
from common.seeds import torch_generator

PRIVATE_A, PRIVATE_B = ".private_A", ".private_B"
"""End the names of a layer's private factors: ``[r, in]`` and ``[out, r]``."""


def private_layers(model: CxrModel) -> dict[str, tuple[int, int]]:
    """Return the vision encoder's linear layers in scope with their sizes: name -> (out, in).

    Layers that a PET method has put in are not among them, those it has wrapped or split are.

    Raises:
        TargetError: if there is none, as on a convolutional backbone.
    """
    blocks = tuple(f"{block}." for block in blocks_in_scope(model.arch, model.config.pet.scope))
    modules = dict(model.net.named_modules())
    found: dict[str, tuple[int, int]] = {}
    for tensor in model.base_names:
        layer, _, kind = tensor.rpartition(".")
        size = _size(modules[layer]) if kind == "weight" and layer in modules else None
        if size is not None and (layer.startswith(blocks) or not blocks):
            found[layer] = size
    if not found:
        raise TargetError(
            "personalise.method = 'dual' lays a low-rank update beside linear layers, and there are none",
            found=f"{model.config.model.backbone}, family {model.arch.family!r}",
            fix="set personalise.method to fine-tune, ditto or private-head, or use a ViT",
        )
    return found


def _size(layer: Any) -> tuple[int, int] | None:
    base = getattr(layer, "base_layer", layer)
    if isinstance(base, SplitQKV):
        part = getattr(base.q, "base_layer", base.q)
        return 3 * part.out_features, part.in_features
    return (base.out_features, base.in_features) if isinstance(base, nn.Linear) else None


class DualModel(CxrModel):
    """A model whose adapter is the private update alone; network and released adapter are another's.

    The update takes part only within ``laid``: outside, the network computes what it did before.
    """

    def __init__(self, released: CxrModel, site: str) -> None:
        self.__dict__.update(vars(released))  # the same network, not a copy of it
        rank = self.config.personalise.rank
        self.scale = self.config.lora.alpha / rank
        generator = torch_generator(self.config.seed, "private", site)
        self._layers = private_layers(released)
        self.parameters = {}
        for layer, (out, into) in self._layers.items():
            inner = nn.init.kaiming_uniform_(torch.empty(rank, into), a=math.sqrt(5), generator=generator)
            self.parameters[layer + PRIVATE_A] = nn.Parameter(inner.to(self.device))
            self.parameters[layer + PRIVATE_B] = nn.Parameter(torch.zeros(out, rank, device=self.device))
        self.schema = schema_of(self.parameters)
        self._initial = {name: p.detach().clone() for name, p in self.parameters.items()}

    def load(self, state: AdapterState) -> None:
        """Copy a private update in; the released adapter and its residual stay as they are.

        Raises:
            SchemaError: if names or shapes differ from this model's.
        """
        self.schema.check(state.tensors)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.tensors[name])

    @property
    def frozen_blocks(self) -> int:
        """How many leading blocks have no private update; of the released adapter nothing moves."""
        for i, block in enumerate(self.arch.blocks):
            if any(layer.startswith(f"{block}.") for layer in self._layers):
                return i
        return len(self.arch.blocks)

    @contextmanager
    def laid(self) -> Iterator[None]:
        """Let the network compute with the private update until the block ends."""
        handles = [
            self.net.get_submodule(layer).register_forward_hook(self._beside_layer(layer))
            for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _beside_layer(self, layer: str) -> Any:
        inner, outer = self.parameters[layer + PRIVATE_A], self.parameters[layer + PRIVATE_B]

        def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return out + self.scale * functional.linear(functional.linear(args[0], inner), outer)

        return add
