"""Frozen bases: timm architectures, named plainly or by the zoo, with weights from a file or this package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
import timm

from common.config import RunConfig
from common.errors import ModelError, closest
from common.model.weights import load_weights
from common.model.zoo import BACKBONES

EMBEDDED = "vit_micro_patch8_96.safetensors"
"""Our own small ViT, pretrained on procedural radiographs; its card lies beside it."""

EMBEDDED_MEAN, EMBEDDED_STD = 0.5, 0.25
"""Grey-value statistics the embedded backbone was pretrained with."""


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
    """Return the embedded weights: beside this file, or in the package installed.

    A Flower App Bundle carries code only and its copy of this package comes first on the path, so
    the weights are looked for along the rest of it.
    """
    beside = Path(__file__).parent / "embedded" / EMBEDDED
    installed = (Path(entry) / "common" / "model" / "embedded" / EMBEDDED for entry in sys.path)
    return next((file for file in (beside, *installed) if file.is_file()), beside)


def load_base(config: RunConfig) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """Return the network with its head, and the mean and standard deviation it expects of images.

    Both have one entry per channel.

    Raises:
        ModelError: if the backbone is unknown or cannot be built as the plan asks.
        WeightsError: if the weights do not fit it.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = create_network(config)
    head = net.pretrained_cfg["classifier"]
    if model.weights:
        load_weights(net, Path(model.weights).expanduser(), head)
    elif model.backbone == "embedded":
        load_weights(net, embedded_file(), head)
    mean, std = _grey_values(net, config)
    return net, mean, std


def create_network(config: RunConfig) -> Any:
    """Build the network a plan names, with untrained weights; on torch's default device, meta too.

    Raises:
        ModelError: if the backbone is unknown, or cannot be built as the plan asks.
    """
    name, kwargs = timm_arguments(config)
    size = config.data.image_size
    # Where an architecture has none of these, there is nothing to set.
    optional: dict[str, Any] = {"img_size": size, "drop_path_rate": config.model.drop_path}
    while True:
        try:
            net = timm.create_model(name, **kwargs, **optional)
            break
        except TypeError as error:
            unknown = next((key for key in optional if f"'{key}'" in str(error)), None)
            if unknown is None:
                raise
            if optional.pop(unknown) and unknown == "drop_path_rate":
                raise ModelError(
                    f"model.drop_path: {config.model.backbone!r} has no residual branches to leave out",
                    found=str(config.model.drop_path),
                    fix="set model.drop_path = 0",
                ) from None
        except AssertionError as error:
            raise _wrong_size(name, size, str(error)) from None
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", (1,))
    if any(size % side for side in patch):
        # timm would drop the pixels beyond the last whole patch without a word.
        raise _wrong_size(name, size, f"patches of {patch[0]} px")
    return net


def timm_arguments(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Return what ``timm.create_model`` is called with, but for the image size and stochastic depth.

    Raises:
        ModelError: if the backbone is unknown.
    """
    model = config.model
    kwargs: dict[str, Any] = {"pretrained": False, "num_classes": len(config.data.findings)}
    if model.backbone == "embedded":
        kwargs |= embedded_architecture()
        name = kwargs.pop("model_name")
    elif known := BACKBONES.get(model.backbone):
        name = known.architecture
        kwargs["global_pool"] = known.pool
    elif model.backbone.startswith("timm:"):
        name = model.backbone.removeprefix("timm:")
        if not timm.is_model(name):
            raise ModelError(
                f"model.backbone: timm has no architecture {name!r}",
                fix=closest(name, timm.list_models()),
            )
    else:
        names = ["embedded", *BACKBONES, *(f"timm:{m}" for m in timm.list_models())]
        raise ModelError(
            "model.backbone must be 'embedded', 'timm:NAME' or a name of the zoo",
            found=repr(model.backbone),
            fix=closest(model.backbone, names)
            or closest(f"timm:{model.backbone}", names)
            or f"one of {', '.join(BACKBONES)}",
        )
    if model.pool != "auto":
        kwargs["global_pool"] = model.pool
    return name, kwargs


def _grey_values(net: Any, config: RunConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel: the plan's, else the pretraining's."""
    model = config.model
    told = net.pretrained_cfg
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if model.backbone == "embedded":
        mean, std = (EMBEDDED_MEAN,), (EMBEDDED_STD,)
    elif known := BACKBONES.get(model.backbone):
        mean, std = known.mean, known.std
    else:
        mean, std = tuple(told["mean"]), tuple(told["std"])
    channels = 1 if model.backbone == "embedded" else len(told["mean"])
    mean, std = ((model.mean,) if model.mean else mean), ((model.std,) if model.std else std)
    return _per_channel(mean, channels), _per_channel(std, channels)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _wrong_size(name: str, size: int, found: str) -> ModelError:
    return ModelError(
        f"model.backbone {name!r} cannot be built for data.image_size = {size}",
        found=found,
        fix="choose an image size that is a multiple of the patch size",
    )


def initialise_head(head: nn.Linear, seed: int) -> None:
    """Draw the head from the run's seed, small enough that training starts from chance."""
    generator = torch.Generator().manual_seed(seed + 1)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
