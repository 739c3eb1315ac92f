"""Load a backbone's weights from a safetensors file, or a folder in timm or transformers layout."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import WeightsError

_FOLDER_FILES = ("model.safetensors", "pytorch_model.safetensors")


def load_weights(net: nn.Module, path: Path, head: str) -> None:
    """Fill ``net``, all but its head, in fp32.

    Position embeddings are resampled to the net's grid by timm's own filter. A transformers
    folder (``config.json`` with ``model_type`` vit or dinov2) is renamed to timm's layout.

    Raises:
        WeightsError: if the file is missing, is not safetensors, or its tensors are not exactly
            the architecture's.
    """
    file, config = _locate(path)
    try:
        in_transformers_layout = config.get("model_type") in ("vit", "dinov2")
        state = _from_transformers(path) if in_transformers_layout else load_file(file)
    except (SafetensorError, OSError):
        raise WeightsError(f"{file}: not a readable safetensors file") from None
    state = {name: tensor.float() for name, tensor in state.items()}
    filter_fn = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if filter_fn is not None:
        state = filter_fn(state, net)
    own = net.state_dict()
    wanted = {name for name in own if not name.startswith(f"{head}.")}
    state = {name: t for name, t in state.items() if not name.startswith(f"{head}.")}
    if "fc_norm.weight" in wanted and "norm.weight" not in wanted:
        # timm names a ViT's last norm by its place: behind the pooling when it is the mean
        state = {re.sub(r"^norm\.", "fc_norm.", name): t for name, t in state.items()}
    _check_names(file, wanted, set(state))
    for name in sorted(wanted):
        if own[name].shape != state[name].shape:
            raise WeightsError(
                f"{file.name}: tensor {name!r} has another shape than the architecture",
                found=f"{tuple(state[name].shape)}, expected {tuple(own[name].shape)}",
                fix="check model.backbone, data.image_size and model.weights",
            )
    net.load_state_dict(state, strict=False)


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    if path.is_dir():
        config_file = path / "config.json"
        try:
            config = json.loads(config_file.read_text()) if config_file.is_file() else {}
        except ValueError:
            raise WeightsError(f"{config_file}: not valid JSON") from None
        for name in _FOLDER_FILES:
            if (path / name).is_file():
                return path / name, config
        raise WeightsError(
            f"{path}: the folder holds no weights",
            found=_some(p.name for p in path.iterdir()),
            fix=f"expected {_FOLDER_FILES[0]}",
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file", fix="check model.weights")
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path.name}: only safetensors files are loaded",
            found=path.suffix or "no suffix",
            fix="convert it: safetensors.torch.save_file(state_dict, 'model.safetensors')",
        )
    return path, {}


def _check_names(file: Path, wanted: set[str], given: set[str]) -> None:
    if missing := wanted - given:
        raise WeightsError(
            f"{file.name}: {len(missing)} tensors the architecture needs are not in the file",
            found=f"missing {_some(sorted(missing))}",
            fix="check that model.backbone names the architecture of these weights",
        )
    if extra := given - wanted:
        raise WeightsError(
            f"{file.name}: {len(extra)} tensors do not belong to the architecture",
            found=f"unexpected {_some(sorted(extra))}",
            fix="check that model.backbone names the architecture of these weights",
        )


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = list(names)
    rest = f" (+{len(listed) - limit})" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest


_RENAME = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
_QKV = re.compile(r"^(blocks\.\d+)\.attention\.([qkv])_proj\.(\w+)$")
_UNUSED = ("pooler.", "embeddings.mask_token")


def _from_transformers(folder: Path) -> dict[str, Tensor]:
    """Load a ViT or DINOv2 encoder through transformers; rename to timm's layout and fuse q, k, v.

    transformers reads older key names and sharded files; a tensor it would have to make up is an
    error.
    """
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model, told = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    made_up = sorted(name for name in told["missing_keys"] if not name.startswith(_UNUSED))
    if made_up:
        raise WeightsError(
            f"{folder}: {len(made_up)} tensors the architecture needs are not in the folder",
            found=f"missing {_some(made_up)}",
        )
    out: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(_UNUSED):
            continue
        for pattern, replacement in _RENAME:
            name = re.sub(pattern, replacement, name)
        if match := _QKV.match(name):
            block, which, leaf = match.groups()
            parts.setdefault((block, leaf), {})[which] = tensor
        else:
            out[name] = tensor
    for (block, leaf), qkv in parts.items():
        out[f"{block}.attn.qkv.{leaf}"] = torch.cat([qkv["q"], qkv["k"], qkv["v"]])
    return out
