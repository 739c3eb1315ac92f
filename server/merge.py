"""A released adapter folded into its base: networks that need neither ``peft`` nor fedcxr."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from common.config import RunConfig
from common.errors import ConfigError, DigestError, SchemaError
from common.files import READABLE, write_atomic
from common.model.base import load_base
from common.model.build import CLINICAL_WEIGHT, build_model
from common.model.text.encoder import load_text_tower
from common.pet.towers import VISION, is_adapted
from server.encoder import ENCODER
from server.release import ADAPTER
from server.release_layout import opens_in_peft

MERGED = "merged.safetensors"
MERGED_TEXT = "merged_text.safetensors"


def merged_tensors(config: RunConfig, release: Path) -> dict[str, Tensor]:
    """Return the tensors of the plain timm network with the adapter in them, by the network's names.

    The base is loaded anew, with the encoder that pretraining moved where it did: nothing that is kept
    anywhere is changed. Clinical variables and reports stay outside, in ``clinical.safetensors`` and
    ``fusion.safetensors``, for the network has no place for them.

    Raises:
        ConfigError: if the method adds modules that no base has a place for.
        SchemaError: if the release is not one of this network.
    """
    net, _, _ = load_base(config)
    if (release / ENCODER).is_file():
        net.load_state_dict(load_file(release / ENCODER), strict=False)
    return _fold(net, config, release, is_adapted(config, VISION))


def merged_text_tensors(config: RunConfig, release: Path) -> dict[str, Tensor]:
    """Return the tensors of the transformers text encoder likewise; none where it is as it was.

    Raises:
        ConfigError, SchemaError: as `merged_tensors`.
    """
    folder = release / "text"
    if not config.data.text or not (folder / ADAPTER).is_file():
        return {}
    return _fold(load_text_tower(config).net, config, folder, True)


def _fold(net: Any, config: RunConfig, folder: Path, adapted: bool) -> dict[str, Tensor]:
    method = config.pet.method
    if method == "adapter":
        raise ConfigError(
            "bottleneck modules cannot be folded into a base",
            found="pet.method = 'adapter'",
            fix="use the adapter",
        )
    by_peft = adapted and opens_in_peft(method)
    if by_peft:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, at a name peft asks for
            opened = PeftModel.from_pretrained(net, str(folder))
        net = opened.merge_and_unload(safe_merge=True)
    tensors: dict[str, Tensor] = {
        name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()
    }
    if not by_peft:
        trained = load_file(folder / ADAPTER)
        unknown = sorted(name for name in trained if name not in tensors and name != CLINICAL_WEIGHT)
        if unknown:
            raise SchemaError("the release holds tensors the network does not have", found=unknown[0])
        tensors |= {name: tensor for name, tensor in trained.items() if name in tensors}
    return tensors


def write_merged(config: RunConfig, base_digest: str, plan_digest: str, release: Path, folder: Path) -> Path:
    """Write ``merged.safetensors`` and return where; an adapted text encoder's lies beside it.

    Raises:
        DigestError: if the base that is here is not the one the adapter was trained on.
    """
    if build_model(config).base_digest != base_digest:
        raise DigestError(
            "the base here is not the one the adapter was trained on", fix="restore model.weights as it was"
        )
    facts = {
        "backbone": config.model.backbone,
        "findings": ", ".join(config.data.findings),
        "image-size": str(config.data.image_size),
        "plan": plan_digest,
    }
    file = folder / MERGED
    _write(file, merged_tensors(config, release), facts)
    if text := merged_text_tensors(config, release):
        _write(folder / MERGED_TEXT, text, {"plan": plan_digest, "text-encoder": config.model.text_encoder})
    return file


def _write(file: Path, tensors: Mapping[str, Tensor], facts: dict[str, str]) -> None:
    write_atomic(file, save(dict(tensors), facts), READABLE)
