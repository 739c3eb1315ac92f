"""One tower's adapter as files others open: as ``peft`` saves it, or under the network's own names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.adapter import Factors
from common.config import RunConfig
from common.model.qkv import QKV_PARTS
from common.pet.lora import scale
from common.pet.targets import Cut, is_feed_forward
from common.phase import LORA_A, LORA_B

_PREFIX = "base_model.model."
_VERA_B, _VERA_D = ".vera_lambda_b", ".vera_lambda_d"
_MARKS = (LORA_A, LORA_B, _VERA_B, _VERA_D, ".ia3_l")
"""What marks a tensor of an inserted adapter, as opposed to a module trained whole."""

Files = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors of ``adapter_model.safetensors``, and what the file of settings beside it says."""


@dataclass(frozen=True)
class Part:
    """One tower's share of an adapter, under the names its own network has."""

    net: Any
    cut: Cut
    config: RunConfig
    seed: int
    """What the tower's PET was drawn from."""
    base: str
    """Name of its base."""
    base_digest: str
    tensors: dict[str, Tensor]
    residual: dict[str, Factors]


def lay_out(part: Part, adapted: bool) -> tuple[Files, str]:
    """Return a tower's files, and the name of the file of settings; only an ``adapted`` one has PET in it.

    Layers keep the names of the plain network, also where a fused qkv was adapted in parts: parts
    become one block-structured update of the fused layer.
    """
    build = _LAYOUTS.get(part.config.pet.method) if adapted else None
    if build is None:
        return _plain(part), "fedcxr_adapter.json"
    return build(part), "adapter_config.json"


def opens_in_peft(method: str) -> bool:
    """Whether ``peft`` has the method."""
    return method in _LAYOUTS


def _lora(part: Part) -> Files:
    """Fold alpha / r into B and append fedex's residual as further columns and rows."""
    s = scale(part.config)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, a in part.tensors.items():
        if LORA_A not in name:
            continue
        layer = name.partition(LORA_A)[0]
        b = s * part.tensors[f"{layer}{LORA_B}weight"]
        if layer in part.residual:
            left, right = part.residual[layer].left, part.residual[layer].right
            b = torch.cat([b, left.reshape(*left.shape, *b.shape[2:])], dim=1)
            a = torch.cat([a, right.reshape(-1, *a.shape[1:])], dim=0)
        pairs[layer] = (b, a)
    return _low_rank(part, _fuse_parts(pairs))


def _low_rank(part: Part, pairs: dict[str, tuple[Tensor, Tensor]]) -> Files:
    """Every layer as one (B, A) with alpha = rank, so that the update is exactly B A."""
    tensors = _saved(part)
    for layer, (b, a) in pairs.items():
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = b
    ranks = {layer: a.shape[0] for layer, (_, a) in pairs.items()}
    rank = max(ranks.values())
    config = _peft("LORA", part, sorted(pairs)) | {
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "rank_pattern": {f"^{_escape(n)}$": r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{_escape(n)}$": r for n, r in ranks.items() if r != rank},
    }
    return tensors, config


def _fuse_parts(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Turn updates of q, k, v into one of the fused layer: A stacked, B block by block."""
    fused: dict[str, tuple[Tensor, Tensor]] = {}
    parts: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for layer, pair in pairs.items():
        parent, _, leaf = layer.rpartition(".")
        if leaf in QKV_PARTS and parent.endswith(".qkv"):
            parts.setdefault(parent, {})[leaf] = pair
        else:
            fused[layer] = pair
    for parent, own in parts.items():
        present = [part for part in QKV_PARTS if part in own]
        a = torch.cat([own[part][1] for part in present])
        width = own[present[0]][0].shape[0]
        b = torch.zeros(3 * width, len(a))
        column = 0
        for part in present:
            block, row = own[part][0], QKV_PARTS.index(part) * width
            b[row : row + width, column : column + block.shape[1]] = block
            column += block.shape[1]
        fused[parent] = (b, a)
    return fused


def _ia3(part: Part) -> Files:
    """Scales of k and v become one of the fused layer with ones for q."""
    tensors = _saved(part)
    scales = {n.removesuffix(".ia3_l"): t for n, t in part.tensors.items() if n.endswith(".ia3_l")}
    fused: dict[str, Tensor] = {}
    for layer, vector in scales.items():
        parent, _, leaf = layer.rpartition(".")
        if leaf in QKV_PARTS and parent.endswith(".qkv"):
            whole = fused.setdefault(parent, torch.ones(3 * len(vector), *vector.shape[1:]))
            row = QKV_PARTS.index(leaf) * len(vector)
            whole[row : row + len(vector)] = vector
        else:
            fused[layer] = vector
    for layer, vector in fused.items():
        tensors[f"{_PREFIX}{layer}.ia3_l"] = vector
    inner = sorted(n for n in fused if is_feed_forward(n, part.cut))
    return tensors, _peft("IA3", part, sorted(fused)) | {"feedforward_modules": inner}


def _vera(part: Part) -> Files:
    """The vectors d and b, with the shared matrices so that no generator has to draw them again.

    On parts of a fused qkv there is no VeRA of the whole that does the same, for d differs by
    part: those are released as the LoRA they equal, diag(b) B diag(d) and A.
    """
    layers = [n.removesuffix(_VERA_D) for n in part.tensors if n.endswith(_VERA_D)]
    shared = {side: part.net.get_submodule(layers[0]).get_submodule(f"vera_{side}") for side in "AB"}
    a, b = (shared[side]["default"].detach().cpu() for side in "AB")
    vectors = {
        layer: (part.tensors[f"{layer}{_VERA_B}"], part.tensors[f"{layer}{_VERA_D}"]) for layer in layers
    }
    if any(layer.rpartition(".")[2] in QKV_PARTS for layer in layers):
        pairs = {}
        for layer, (out, inner) in vectors.items():
            inside = part.net.get_submodule(layer).in_features
            pairs[layer] = (out[:, None] * b[: len(out)] * inner, a[:, :inside].clone())
        return _low_rank(part, _fuse_parts(pairs))
    tensors = _saved(part) | {"base_model.vera_A": a, "base_model.vera_B": b}
    for layer, (out, inner) in vectors.items():
        tensors[f"{_PREFIX}{layer}{_VERA_B}"], tensors[f"{_PREFIX}{layer}{_VERA_D}"] = out, inner
    return tensors, _peft("VERA", part, sorted(layers)) | {
        "r": part.config.pet.rank,
        "projection_prng_key": part.seed,
        "save_projection": True,
        "vera_dropout": 0.0,
        "d_initial": 0.1,
        "bias": "none",
    }


def _plain(part: Part) -> Files:
    """Methods ``peft`` does not have, and a tower without PET: tensors under the network's own names."""
    config = {
        "method": part.config.pet.method,
        "config": part.config.to_flat(),
        "findings": list(part.config.data.findings),
        "base_digest": part.base_digest,
    }
    return dict(part.tensors), config


_LAYOUTS: dict[str, Callable[[Part], Files]] = {"ia3": _ia3, "lora": _lora, "vera": _vera}


def _whole(part: Part) -> list[str]:
    """Modules trained whole: the head, and norms beside it."""
    own = (n for n in part.tensors if not any(mark in n for mark in _MARKS))
    return sorted({name.rpartition(".")[0] for name in own})


def _saved(part: Part) -> dict[str, Tensor]:
    """Tensors of the modules trained whole.

    ``peft`` finds them by the end of their names and wants every tensor they hold, so running
    statistics and namesakes (a block's bn2 beside the last bn2) go along as the base has them.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in part.net.named_modules():
        if name.endswith(tuple(_whole(part))):
            for leaf, tensor in module.state_dict().items():
                full = f"{name}.{leaf}"
                tensors[f"{_PREFIX}{full}"] = part.tensors.get(full, tensor.detach().cpu())
    return tensors


def _peft(kind: str, part: Part, targets: list[str]) -> dict[str, Any]:
    return {
        "peft_type": kind,
        "base_model_name_or_path": part.base,
        "target_modules": targets,
        "modules_to_save": _whole(part) or None,
        "inference_mode": True,
        "task_type": None,
    }


def _escape(name: str) -> str:
    return name.replace(".", r"\.")
