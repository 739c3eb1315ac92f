"""Build the model a run describes: a frozen, hashed timm base with one PET method in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from common.adapter import AdapterSchema, AdapterState, Factors, schema_of
from common.config import RunConfig
from common.model.architecture import architecture_of
from common.model.base import initialise_head, load_base
from common.model.digest import tensor_digest
from common.model.residual import residual_hook
from common.pet.registry import METHODS
from common.pet.targets import QKV_PARTS, is_final_norm

CLINICAL_WEIGHT = "clinical.weight"
"""Weights ``[F, 2 V]`` of the clinical variables and of the marks that they are missing."""

_WRAPPING = re.compile(r"\.(base_layer|default)(?=\.|$)")
_QKV_PART = re.compile(rf"\.qkv\.({'|'.join(QKV_PARTS)})\.")


class CxrModel:
    """A frozen base, an adapter in it, and a head with one logit per finding."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.net, self.mean, self.std = load_base(config)
        self.channels = len(self.mean)
        self.head_name: str = self.net.pretrained_cfg["classifier"]
        self.arch = architecture_of(self.net)
        self.findings = config.data.findings
        initialise_head(self.net.get_submodule(self.head_name), config.seed)
        self.clinical = _clinical_head(config)
        self.base_names = [n for n in self.net.state_dict() if not self._is_head(n)]
        self.base_digest = self.current_base_digest()
        self._insert_pet()
        self._residual_hooks: list[RemovableHandle] = []
        self._initial = {n: p.detach().clone() for n, p in self.parameters.items()}

    def _is_head(self, name: str) -> bool:
        return name.startswith(f"{self.head_name}.")

    def _insert_pet(self) -> None:
        self.net.requires_grad_(False)
        METHODS[self.config.pet.method](self.net, self.arch, self.config)
        self.net.get_submodule(self.head_name).requires_grad_(True)
        if self.config.pet.final_norm:
            for name, parameter in self.net.named_parameters():
                if is_final_norm(name):
                    parameter.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = {
            _WRAPPING.sub("", name): parameter
            for name, parameter in sorted(self.net.named_parameters())
            if parameter.requires_grad
        }
        if self.clinical is not None:
            self.parameters[CLINICAL_WEIGHT] = next(self.clinical.parameters())
        head = [n for n in self.parameters if self._is_head(n) or n == CLINICAL_WEIGHT]
        self.schema: AdapterSchema = schema_of(self.parameters, head)
        originals = self._base_tensors()
        self._base_originals = {n: originals[n].clone() for n in self.parameters if n in originals}
        self.net.eval()

    # ------------------------------------------------------------------ the frozen base

    def _base_tensors(self) -> dict[str, Tensor]:
        """The base's tensors under their original names, whatever PET has wrapped or split."""
        live: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.net.state_dict().items():
            plain = _WRAPPING.sub("", name)
            if match := _QKV_PART.search(plain):
                fused = plain.replace(match.group(0), ".qkv.")
                if plain.rpartition(".")[2] in ("weight", "bias") and "lora" not in plain:
                    parts.setdefault(fused, {})[match.group(1)] = tensor
            else:
                live[plain] = tensor
        for fused, qkv in parts.items():
            live[fused] = torch.cat([qkv[part] for part in QKV_PARTS])
        return {name: live[name] for name in self.base_names}

    def current_base_digest(self) -> str:
        """Hash the base as it stands in memory now.

        Where a method trains a base tensor itself (bitfit, norm, full) the value it started from
        counts: the trained one belongs to the adapter.
        """
        return tensor_digest({**self._base_tensors(), **getattr(self, "_base_originals", {})})

    @property
    def base_numel(self) -> int:
        """Number of parameters of the frozen base, without the head and without buffers."""
        names = {_WRAPPING.sub("", n) for n, _ in self.net.named_parameters()}
        tensors = self._base_tensors()
        split = {_QKV_PART.sub(".qkv.", n) for n in names}
        return sum(t.numel() for n, t in tensors.items() if n in names or n in split)

    # ------------------------------------------------------------------ the adapter

    def state(self) -> AdapterState:
        """Copy the adapter out (fp32, CPU)."""
        tensors = {n: p.detach().float().cpu().clone() for n, p in self.parameters.items()}
        return AdapterState(tensors, {})

    def initial_state(self) -> AdapterState:
        """The adapter as first built from the run's seed."""
        return AdapterState({n: t.cpu().clone() for n, t in self._initial.items()}, {})

    def load(self, state: AdapterState) -> None:
        """Copy an adapter in, and lay its residual over the layers it belongs to.

        Raises:
            SchemaError: if names or shapes differ from this model's, or a residual fits no layer.
        """
        self.schema.check(state.tensors)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.tensors[name])
        self._lay_residual(state.residual)

    def _lay_residual(self, residual: Mapping[str, Factors]) -> None:
        for hook in self._residual_hooks:
            hook.remove()
        self._residual_hooks = []
        laid = {n: residual_hook(self.net, n, f, self.device) for n, f in residual.items()}
        for name, add in laid.items():
            handle = self.net.get_submodule(name).register_forward_hook(add)
            self._residual_hooks.append(handle)

    # ------------------------------------------------------------------ computing

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.net.parameters()).device

    def to(self, device: torch.device) -> CxrModel:
        """Move to a device."""
        self.net.to(device)
        if self.clinical is not None:
            self.clinical.to(device)
        return self

    def forward(self, images: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Map normalised images ``[B, C, S, S]`` and scaled variables ``[B, 2 V]`` to logits ``[B, F]``."""
        return self._beside(self.net(images), clinical)

    def _beside(self, logits: Tensor, clinical: Tensor | None) -> Tensor:
        """Add what the clinical variables say: one linear head over image features and variables."""
        return logits if self.clinical is None else logits + self.clinical(clinical)

    @property
    def frozen_blocks(self) -> int:
        """How many leading blocks hold nothing trained; the prefix may be cached up to there."""
        trained = list(self.parameters)
        for i, block in enumerate(self.arch.blocks):
            if any(n.startswith(f"{block}.") for n in trained):
                return i if self._stem_is_frozen() else 0
        return len(self.arch.blocks) if self._stem_is_frozen() else 0

    def _stem_is_frozen(self) -> bool:
        inside = (*(f"{b}." for b in self.arch.blocks), f"{self.head_name}.", CLINICAL_WEIGHT)
        return all(n.startswith(inside) or is_final_norm(n) for n in self.parameters)

    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """Run the stem and the first ``blocks`` blocks."""
        return self.arch.run(self.net, self.arch.stem(self.net, images), 0, blocks)

    def suffix(self, hidden: Tensor, blocks: int, clinical: Tensor | None = None) -> Tensor:
        """Run what ``prefix`` with the same ``blocks`` left out; returns logits ``[B, F]``."""
        rest = self.arch.run(self.net, hidden, blocks, len(self.arch.blocks))
        return self._beside(self.arch.tail(self.net, rest), clinical)

    def train_mode(self, on: bool) -> None:
        """Switch dropout on or off; BatchNorm always stays with its frozen statistics."""
        self.net.train(on)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()


def _clinical_head(config: RunConfig) -> nn.Linear | None:
    """Make a linear head over ``[B, 2 V]`` that starts at zero: the image alone decides at first."""
    if not config.data.clinical:
        return None
    head = nn.Linear(2 * len(config.data.clinical), len(config.data.findings), bias=False)
    nn.init.zeros_(head.weight)
    return head


def build_model(config: RunConfig) -> CxrModel:
    """Build base, adapter and head.

    Raises:
        ModelError: for an unknown backbone.
        WeightsError: if the weights do not fit it.
        TargetError: if a PET target matches nothing.
    """
    return CxrModel(config)
