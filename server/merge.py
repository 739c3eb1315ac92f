"""A released adapter folded into its base: one network that needs neither ``peft`` nor fedcxr."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from common.config import RunConfig
from common.errors import ConfigError, DigestError, SchemaError
from common.files import READABLE, write_atomic
from common.model.base import load_base
from common.model.build import CLINICAL_WEIGHT, build_model

_BY_PEFT = {"lora", "vera", "ia3"}
MERGED = "merged.safetensors"


def merged_tensors(config: RunConfig, release: Path) -> dict[str, Tensor]:
    """Return the tensors of the plain timm network with the adapter in them, by the network's names.

    The base is loaded anew: nothing that is kept anywhere is changed. Clinical variables stay
    outside, in ``clinical.safetensors``, for the network has no place for them.

    Raises:
        ConfigError: if the method adds modules that no base has a place for.
        SchemaError: if the release is not one of this network.
    """
    method = config.pet.method
    if method == "adapter":
        raise ConfigError(
            "bottleneck modules cannot be folded into a base",
            found="pet.method = 'adapter'",
            fix="use the adapter",
        )
    net, _, _ = load_base(config)
    if method in _BY_PEFT:
        from peft import PeftModel

        opened = PeftModel.from_pretrained(net, str(release))
        net = opened.merge_and_unload(safe_merge=True)
    tensors: dict[str, Tensor] = {
        name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()
    }
    if method not in _BY_PEFT:
        trained = load_file(release / "adapter_model.safetensors")
        unknown = sorted(name for name in trained if name not in tensors and name != CLINICAL_WEIGHT)
        if unknown:
            raise SchemaError("the release holds tensors the network does not have", found=unknown[0])
        tensors |= {name: tensor for name, tensor in trained.items() if name in tensors}
    return tensors


def write_merged(config: RunConfig, base_digest: str, plan_digest: str, release: Path, folder: Path) -> Path:
    """Write ``merged.safetensors`` and return where.

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
    write_atomic(file, save(merged_tensors(config, release), facts), READABLE)
    return file
