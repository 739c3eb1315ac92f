"""Load a backbone's weights from a safetensors file or folder, in any layout `common.model.convert` knows."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from common.errors import WeightsError
from common.model.convert import to_timm

_FOLDER_FILES = ("model.safetensors", "pytorch_model.safetensors", "open_clip_model.safetensors")
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "pickled weights can run code: convert them once, on a machine without patients' data, by "
    "python -c \"import torch; from safetensors.torch import save_file; s = torch.load('{0}', "
    "map_location='cpu', weights_only=True); s = s.get('model', s.get('state_dict', s)); "
    "save_file({{k: v.clone() for k, v in s.items() if torch.is_tensor(v)}}, 'model.safetensors')\""
)


def load_weights(net: nn.Module, path: Path, head: str) -> None:
    """Fill ``net``, all but its head, in fp32.

    A published layout is renamed to timm's; position embeddings are resampled to the net's grid by timm's
    own filter.

    Raises:
        WeightsError: if the file is missing, is not safetensors, or its tensors are not exactly
            the architecture's.
    """
    files, config = _locate(path)
    try:
        tensors = {name: t.float() for file in files for name, t in load_file(file).items()}
    except (SafetensorError, OSError):
        raise WeightsError(f"{files[0]}: not a readable safetensors file") from None
    _check_activation(net, config)
    state = to_timm(tensors)
    filter_fn = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if filter_fn is not None:
        state = filter_fn(state, net)
    own = net.state_dict()
    wanted = {name for name in own if not name.startswith(f"{head}.")}
    state = {name: t for name, t in state.items() if not name.startswith(f"{head}.")}
    if "fc_norm.weight" in wanted and "norm.weight" not in wanted:
        # timm names a ViT's last norm by its place: behind the pooling when it is the mean
        state = {re.sub(r"^norm\.", "fc_norm.", name): t for name, t in state.items()}
    # Old torchvision files do not count batches, and nothing here reads the count.
    counts = {name for name in wanted if name.endswith(".num_batches_tracked")}
    _check_names(files[0], wanted - (counts - state.keys()), set(state))
    for name, tensor in sorted(state.items()):
        if own[name].shape != tensor.shape:
            raise WeightsError(
                f"{files[0].name}: tensor {name!r} has another shape than the architecture",
                found=f"{tuple(tensor.shape)}, expected {tuple(own[name].shape)}",
                fix="check model.backbone, data.image_size and model.weights",
            )
    net.load_state_dict(state, strict=False)


def _locate(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """Return the files that hold the tensors, and config.json where the folder has one."""
    if path.is_dir():
        config = _json(path / "config.json") if (path / "config.json").is_file() else {}
        for name in _FOLDER_FILES:
            if (path / name).is_file():
                return [path / name], config
        if (path / _INDEX).is_file():
            return _parts(path), config
        pickled = next((p.name for p in sorted(path.iterdir()) if p.suffix in _PICKLED), "")
        raise WeightsError(
            f"{path}: the folder holds no weights",
            found=_some(p.name for p in path.iterdir()),
            fix=_CONVERT.format(pickled) if pickled else f"expected {_FOLDER_FILES[0]}",
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file", fix="check model.weights")
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path.name}: only safetensors files are loaded",
            found=path.suffix or "no suffix",
            fix=_CONVERT.format(path.name),
        )
    return [path], {}


def _parts(folder: Path) -> list[Path]:
    """Return the files a sharded checkpoint's index names; they lie beside it."""
    placed = _json(folder / _INDEX).get("weight_map")
    names = sorted({str(name) for name in placed.values()}) if isinstance(placed, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise WeightsError(f"{folder / _INDEX}: not an index of weights", fix="download the folder again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{folder}: {len(missing)} of {len(names)} parts are missing", found=f"missing {_some(missing)}"
        )
    return [folder / name for name in names]


def _json(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError):
        raise WeightsError(f"{file}: not valid JSON") from None
    return told if isinstance(told, dict) else {}


def _check_activation(net: nn.Module, config: dict[str, Any]) -> None:
    """Refuse weights trained with another activation: every name and shape fits, and each feature is wrong.

    OpenAI's CLIP has QuickGELU and its followers GELU.
    """
    told = config.get("vision_config", config)
    wanted = told.get("hidden_act") if isinstance(told, dict) else None
    names = {"quick_gelu": "QuickGELU", "gelu": "GELU"}
    has = next((type(m).__name__ for m in net.modules() if type(m).__name__ in names.values()), None)
    if has and wanted in names and names[wanted] != has:
        raise WeightsError(
            "the weights were trained with another activation than the architecture has",
            found=f"config.json says hidden_act = {wanted!r}, the architecture has {has}",
            fix="choose timm's variant with, or without, 'quickgelu' in its name",
        )


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
