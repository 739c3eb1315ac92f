"""Frozen bases: timm architectures with weights from a file, a folder or this package."""

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

    Raises:
        ModelError: if the backbone is unknown or cannot be built for the image size.
        WeightsError: if the weights do not fit it.
    """
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
            net = timm.create_model(name, img_size=size, **kwargs)
        except TypeError:
            net = timm.create_model(name, **kwargs)
        except AssertionError as error:
            raise _wrong_size(name, size, str(error)) from None
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", (1,))
    if any(size % side for side in patch):
        # timm would drop the pixels beyond the last whole patch without a word.
        raise _wrong_size(name, size, f"patches of {patch[0]} px")
    return net


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
