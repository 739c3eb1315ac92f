"""Which pretraining goes with which model: said before a run begins, and again where it happens."""

from __future__ import annotations

from typing import Any, cast

import torch

from common.errors import ModelError
from common.model.build import CxrModel
from common.phase import trained_names

_CUT = ("vit", "resnet", "densenet", "efficientnet", "convnext")
"""Families whose last block gives tokens or a feature map that patches can be painted from."""


def check_pretraining(model: CxrModel) -> None:
    """Refuse a plan whose pretraining its model cannot do; one without pretraining is fine.

    Raises:
        ModelError: if nothing of the image encoder would move, or, for a masked image, as `feature_grid`.
    """
    config = model.config
    if not config.pretrain.rounds:
        return
    task, pretrain, pet = config.pretrain.task, config.pretrain, config.pet
    names = trained_names(model.schema, config, 1)
    if task == "masked-image":
        names = tuple(name for name in names if not name.startswith("text."))
    if not names:
        raise ModelError(
            f"pretrain.task = {task!r} has nothing to move",
            found=f"pretrain.parameters = {pretrain.parameters!r}, pet.method = {pet.method!r}",
            fix="choose a PET method that puts parameters into the image encoder, "
            "or set pretrain.parameters = 'encoder'",
        )
    if task == "masked-image":
        feature_grid(model)


def feature_grid(model: CxrModel) -> tuple[int, int, int]:
    """Return the width D of the last block's features, their places along a side, and a place's pixels.

    Raises:
        ModelError: if it is not known how the features lie in the image, they do not divide it, or there
            is but one place.
    """
    config, arch = model.config, model.arch
    size, net = config.data.image_size, cast(Any, model.net)
    if arch.family not in _CUT:
        raise ModelError(
            "pretrain.task = 'masked-image' does not know how this backbone's features lie in the image",
            found=f"model.backbone = {config.model.backbone!r}",
            fix="use a ViT, ResNet, DenseNet, EfficientNet or ConvNeXt, or pretrain.task = 'image-text'",
        )
    if arch.family == "vit":
        width, places = int(net.embed_dim), size // int(net.patch_embed.patch_size[0])
    else:
        with torch.no_grad():
            blank = torch.zeros(1, model.channels, size, size, device=model.device)
            shape = arch.run(net, arch.stem(net, blank), 0, len(arch.blocks)).shape
        width, places = int(shape[1]), int(shape[-1])
    if size % places or places < 2:
        raise ModelError(
            "pretrain.task = 'masked-image' needs features that divide the image into equal patches",
            found=f"{places} along data.image_size = {size}",
            fix="choose a multiple of the backbone's stride, at least twice that",
        )
    return width, places, size // places
