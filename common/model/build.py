"""Build the model a run describes: a frozen, hashed timm base with one PET method in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm and peft)
import timm

from common.adapter import AdapterSchema, AdapterState, Factors, schema_of
from common.config import RunConfig
from common.errors import ModelError, SchemaError, closest
from common.model.architecture import architecture_of
from common.model.digest import tensor_digest
from common.model.weights import load_weights
from common.pet.registry import METHODS
from common.pet.targets import QKV_PARTS, is_final_norm

EMBEDDED = "vit_micro_patch8_96.safetensors"
"""Our own small ViT, pretrained on procedural radiographs; its card lies beside it."""

EMBEDDED_MEAN, EMBEDDED_STD = 0.5, 0.25
"""Grey-value statistics the embedded backbone was pretrained with."""

_WRAPPING = re.compile(r"\.(base_layer|default)(?=\.|$)")
_QKV_PART = re.compile(rf"\.qkv\.({'|'.join(QKV_PARTS)})\.")


def embedded_architecture() -> dict[str, Any]:
    """Return timm's arguments for the embedded backbone (96 px, patch 8, 128 wide, 8 blocks)."""
    return {
        "model_name": "vit_tiny_patch16_224",
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 8,
        "num_heads": 4,
        "in_chans": 1,
        "class_token": False,
        "global_pool": "avg",
    }


def embedded_file() -> Path:
    """Return the embedded weights: beside this file, or in the installed distribution.

    A Flower App Bundle carries code only, so its copy of this package finds them in the wheel
    installed in the same environment.
    """
    beside = Path(__file__).parent / "embedded" / EMBEDDED
    if not beside.is_file():
        try:
            installed = files("fedcxr") or []
        except PackageNotFoundError:
            installed = []
        for file in installed:
            if file.name == EMBEDDED:
                return Path(str(file.locate()))
    return beside


class CxrModel:
    """A frozen base, an adapter in it, and a head with one logit per finding."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.net, self.mean, self.std = _base(config)
        self.channels = len(self.mean)
        self.head_name: str = self.net.pretrained_cfg["classifier"]
        self.arch = architecture_of(self.net)
        self.findings = config.data.findings
        _initialise_head(self.net.get_submodule(self.head_name), config.seed)
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
        head = [n for n in self.parameters if self._is_head(n)]
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
        hooks = {n: _residual_hook(self.net, n, f, self.device) for n, f in residual.items()}
        for name, hook in hooks.items():
            handle = self.net.get_submodule(name).register_forward_hook(hook)
            self._residual_hooks.append(handle)

    # ------------------------------------------------------------------ computing

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.net.parameters()).device

    def to(self, device: torch.device) -> CxrModel:
        """Move to a device."""
        self.net.to(device)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``[B, C, S, S]`` to logits ``[B, F]``."""
        return self.net(images)

    @property
    def frozen_blocks(self) -> int:
        """How many leading blocks hold nothing trained; the prefix may be cached up to there."""
        trained = list(self.parameters)
        for i, block in enumerate(self.arch.blocks):
            if any(n.startswith(f"{block}.") for n in trained):
                return i if self._stem_is_frozen() else 0
        return len(self.arch.blocks) if self._stem_is_frozen() else 0

    def _stem_is_frozen(self) -> bool:
        inside = (*(f"{b}." for b in self.arch.blocks), f"{self.head_name}.")
        return all(n.startswith(inside) or is_final_norm(n) for n in self.parameters)

    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """Run the stem and the first ``blocks`` blocks."""
        return self.arch.run(self.net, self.arch.stem(self.net, images), 0, blocks)

    def suffix(self, hidden: Tensor, blocks: int) -> Tensor:
        """Run what ``prefix`` with the same ``blocks`` left out; returns logits ``[B, F]``."""
        rest = self.arch.run(self.net, hidden, blocks, len(self.arch.blocks))
        return self.arch.tail(self.net, rest)

    def train_mode(self, on: bool) -> None:
        """Switch dropout on or off; BatchNorm always stays with its frozen statistics."""
        self.net.train(on)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()


def build_model(config: RunConfig) -> CxrModel:
    """Build base, adapter and head.

    Raises:
        ModelError: for an unknown backbone.
        WeightsError: if the weights do not fit it.
        TargetError: if a PET target matches nothing.
    """
    return CxrModel(config)


def _base(config: RunConfig) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    model, size = config.model, config.data.image_size
    kwargs: dict[str, Any] = {"pretrained": False, "num_classes": len(config.data.findings)}
    if model.backbone == "embedded":
        described = embedded_architecture()
        name = described.pop("model_name")
        kwargs |= described
    elif model.backbone.startswith("timm:"):
        name = model.backbone.removeprefix("timm:")
        if not timm.is_model(name):
            raise ModelError(
                f"model.backbone: timm has no architecture {name!r}",
                fix=closest(name, timm.list_models()),
            )
    else:
        raise ModelError(
            "model.backbone must be 'embedded' or 'timm:NAME'",
            found=repr(model.backbone),
            fix=closest(f"timm:{model.backbone}", [f"timm:{m}" for m in timm.list_models()]),
        )
    if model.pool != "auto":
        kwargs["global_pool"] = model.pool
    net = _create(name, kwargs, size, config.seed)
    head = net.pretrained_cfg["classifier"]
    if model.weights:
        load_weights(net, Path(model.weights).expanduser(), head)
    elif model.backbone == "embedded":
        load_weights(net, embedded_file(), head)
    if model.backbone == "embedded":
        return net, (EMBEDDED_MEAN,), (EMBEDDED_STD,)
    return net, tuple(net.pretrained_cfg["mean"]), tuple(net.pretrained_cfg["std"])


def _create(name: str, kwargs: dict[str, Any], size: int, seed: int) -> Any:
    """Create a seeded net; ``img_size`` goes only to architectures that are built for one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(name, img_size=size, **kwargs)
        except TypeError:
            return timm.create_model(name, **kwargs)
        except AssertionError as error:
            raise ModelError(
                f"model.backbone {name!r} cannot be built for data.image_size = {size}",
                found=str(error),
                fix="choose an image size that is a multiple of the patch size",
            ) from None


def _initialise_head(head: nn.Linear, seed: int) -> None:
    """Draw the head from the run's seed, small enough that training starts from chance."""
    generator = torch.Generator().manual_seed(seed + 1)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)


def _residual_hook(net: nn.Module, name: str, factors: Factors, device: torch.device) -> Any:
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
