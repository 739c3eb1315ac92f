"""The image encoders the papers compare, by name: architecture, grey values, pooling, PET targets.

A name says how weights that somebody else trained must be used. The weights themselves come from a file
or folder that ``model.weights`` names; every layout in ``files`` is read as published, once it is in
safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Pool = Literal["avg", "token"]


@dataclass(frozen=True)
class Backbone:
    """How one published encoder is built and fed."""

    architecture: str
    """timm's name of the network."""
    size: int
    """Side in pixels it was pretrained at; other sizes resample its positions."""
    pool: Pool
    """``avg``: the mean of patches or pixels. ``token``: the class token."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of grey values in [0, 1] that it was pretrained with, one for all channels or one for each."""
    files: tuple[str, ...]
    """Layouts of weights that are read."""
    about: str
    """What it is and where it is published."""
    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")
    """Layers that LoRA adapts unless ``pet.targets`` names others."""


_CNN = ("conv",)
_TIMM = "timm"
_TORCHVISION = "torchvision"
_DINOV2 = (_TIMM, "transformers Dinov2Model", "facebookresearch/dinov2")
_CLIP = ("transformers CLIPVisionModel or CLIPModel", "OpenAI visual.*", _TIMM)
_MAE = (_TIMM, "MAE with or without its decoder")

BACKBONES: Mapping[str, Backbone] = {
    "resnet18": Backbone(
        "resnet18", 224, "avg", *IMAGENET, (_TORCHVISION, _TIMM), "ResNet-18 (He et al. 2016)", _CNN
    ),
    "resnet50": Backbone(
        "resnet50", 224, "avg", *IMAGENET, (_TORCHVISION, _TIMM), "ResNet-50 (He et al. 2016)", _CNN
    ),
    "densenet121": Backbone(
        "densenet121", 224, "avg", *IMAGENET, (_TORCHVISION, _TIMM), "DenseNet-121 (Huang et al. 2017)", _CNN
    ),
    "vit-b16-mae": Backbone(
        "vit_base_patch16_224", 224, "avg", (0.4785,), (0.2834,), _MAE,
        "ViT-B/16 by masked autoencoding of chest radiographs (Xiao et al. 2023, arXiv 2210.12843), read as "
        "MED-PEFT does (arXiv 2401.12215): patch tokens averaged, then the norm",
    ),
    "vit-b16-mrm": Backbone(
        "vit_base_patch16_224", 224, "avg", (0.4978,), (0.2449,), _MAE,
        "ViT-B/16 by masked record modelling (Zhou et al. 2023, ICLR), read as MED-PEFT does",
    ),
    "dinov2-s14": Backbone(
        "vit_small_patch14_dinov2", 518, "token", *IMAGENET, _DINOV2, "DINOv2 ViT-S/14 (Oquab et al. 2023)"
    ),
    "dinov2-b14": Backbone(
        "vit_base_patch14_dinov2", 518, "token", *IMAGENET, _DINOV2, "DINOv2 ViT-B/14 (Oquab et al. 2023)"
    ),
    "dinov2-l14": Backbone(
        "vit_large_patch14_dinov2", 518, "token", *IMAGENET, _DINOV2, "DINOv2 ViT-L/14 (Oquab et al. 2023)"
    ),
    "clip-l14": Backbone(
        "vit_large_patch14_clip_quickgelu_224", 224, "token", *OPENAI, _CLIP,
        "CLIP ViT-L/14 (Radford et al. 2021): openai/clip-vit-large-patch14",
    ),
    "pubmedclip": Backbone(
        "vit_base_patch32_clip_quickgelu_224", 224, "token", *OPENAI, _CLIP,
        "PubMedCLIP ViT-B/32 (Eslami et al. 2023): flaviagiammarino/pubmed-clip-vit-base-patch32",
    ),
    "biomedclip": Backbone(
        "vit_base_patch16_224", 224, "token", *OPENAI, ("open_clip visual.trunk.*", _TIMM),
        "BiomedCLIP ViT-B/16 (Zhang et al. 2023): microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    ),
    "medclip-resnet50": Backbone(
        "resnet50", 224, "avg", (0.5862785803043838,), (0.27950088968644304,),
        ("MedCLIP vision_model.model.*", _TORCHVISION, _TIMM), "MedCLIP ResNet-50 (Wang et al. 2022)", _CNN,
    ),
    "medclip-vit": Backbone(
        "swin_tiny_patch4_window7_224", 224, "avg", (0.5862785803043838,), (0.27950088968644304,),
        ("MedCLIP vision_model.model.*", "transformers SwinModel", _TIMM),
        "MedCLIP Swin-T, which its authors call ViT (Wang et al. 2022)",
    ),
    "rad-dino": Backbone(
        "vit_base_patch14_dinov2", 518, "token", (0.5307,), (0.2583,), _DINOV2,
        "RAD-DINO ViT-B/14 (Perez-Garcia et al. 2024): microsoft/rad-dino",
    ),
}  # fmt: skip
"""Name -> encoder."""
