"""The release: a folder ``peft`` opens (LoRA, VeRA, IA3) or plain safetensors, with a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from common.adapter import AdapterState
from common.files import READABLE, write_atomic
from common.model.build import CLINICAL_WEIGHT, CxrModel
from common.pet.lora import scale
from common.pet.phase import LORA_A, LORA_B
from common.pet.targets import QKV_PARTS

_PREFIX = "base_model.model."
_VERA_B, _VERA_D = ".vera_lambda_b", ".vera_lambda_d"
_MARKS = (LORA_A, LORA_B, _VERA_B, _VERA_D, ".ia3_l")
"""What marks a tensor of an inserted adapter, as opposed to a module trained whole."""


def write_release(model: CxrModel, state: AdapterState, folder: Path, plan_digest: str) -> str:
    """Write adapter, config and card; returns the SHA-256 of ``adapter_model.safetensors``.

    Layers keep the names of the plain timm network, also where a fused qkv was adapted in parts:
    parts become one block-structured update of the fused layer. The head is saved whole.
    """
    method = model.config.pet.method
    build = _LAYOUTS.get(method, _plain)
    beside = {CLINICAL_WEIGHT: state.tensors[CLINICAL_WEIGHT]} if model.clinical is not None else {}
    own = {name: tensor for name, tensor in state.tensors.items() if name not in beside}
    tensors, config = build(model, AdapterState(own, state.residual))
    if beside:
        clinical = {"plan": plan_digest, "variables": ", ".join(model.config.data.clinical)}
        write_atomic(folder / "clinical.safetensors", save(beside, clinical), READABLE)
    data = save({n: t.contiguous() for n, t in tensors.items()}, {"plan": plan_digest})
    write_atomic(folder / "adapter_model.safetensors", data, READABLE)
    name = "adapter_config.json" if method in _LAYOUTS else "fedcxr_adapter.json"
    write_atomic(folder / name, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), READABLE)
    write_atomic(folder / "README.md", _card(model, state, plan_digest, method).encode(), READABLE)
    return hashlib.sha256(data).hexdigest()


def _lora(model: CxrModel, state: AdapterState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fold alpha / r into B and append fedex's residual as further columns and rows."""
    s = scale(model.config)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, a in state.tensors.items():
        if LORA_A not in name:
            continue
        layer = name.partition(LORA_A)[0]
        b = s * state.tensors[f"{layer}{LORA_B}weight"]
        if layer in state.residual:
            left, right = state.residual[layer].left, state.residual[layer].right
            b = torch.cat([b, left.reshape(*left.shape, *b.shape[2:])], dim=1)
            a = torch.cat([a, right.reshape(-1, *a.shape[1:])], dim=0)
        pairs[layer] = (b, a)
    return _low_rank(model, state, _fuse_parts(pairs))


def _low_rank(
    model: CxrModel, state: AdapterState, pairs: dict[str, tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every layer as one (B, A) with alpha = rank, so that the update is exactly B A."""
    tensors = _saved(model, state)
    for layer, (b, a) in pairs.items():
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = b
    ranks = {layer: a.shape[0] for layer, (_, a) in pairs.items()}
    rank = max(ranks.values())
    config = _peft("LORA", model, sorted(pairs)) | {
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


def _ia3(model: CxrModel, state: AdapterState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scales of k and v become one of the fused layer with ones for q."""
    tensors = _saved(model, state)
    scales = {n.removesuffix(".ia3_l"): t for n, t in state.tensors.items() if n.endswith(".ia3_l")}
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
    inner = sorted(n for n in fused if n.endswith((".fc1", ".fc2")))
    return tensors, _peft("IA3", model, sorted(fused)) | {"feedforward_modules": inner}


def _vera(model: CxrModel, state: AdapterState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The vectors d and b, with the shared matrices so that no generator has to draw them again.

    On parts of a fused qkv there is no VeRA of the whole that does the same, for d differs by
    part: those are released as the LoRA they equal, diag(b) B diag(d) and A.
    """
    layers = [n.removesuffix(_VERA_D) for n in state.tensors if n.endswith(_VERA_D)]
    shared = {side: model.net.get_submodule(layers[0]).get_submodule(f"vera_{side}") for side in "AB"}
    a, b = (shared[side]["default"].detach().cpu() for side in "AB")
    vectors = {
        layer: (state.tensors[f"{layer}{_VERA_B}"], state.tensors[f"{layer}{_VERA_D}"]) for layer in layers
    }
    if any(layer.rpartition(".")[2] in QKV_PARTS for layer in layers):
        pairs = {}
        for layer, (out, inner) in vectors.items():
            inside = model.net.get_submodule(layer).in_features
            pairs[layer] = (out[:, None] * b[: len(out)] * inner, a[:, :inside].clone())
        return _low_rank(model, state, _fuse_parts(pairs))
    tensors = _saved(model, state) | {"base_model.vera_A": a, "base_model.vera_B": b}
    for layer, (out, inner) in vectors.items():
        tensors[f"{_PREFIX}{layer}{_VERA_B}"], tensors[f"{_PREFIX}{layer}{_VERA_D}"] = out, inner
    return tensors, _peft("VERA", model, sorted(layers)) | {
        "r": model.config.pet.rank,
        "projection_prng_key": model.config.seed,
        "save_projection": True,
        "vera_dropout": 0.0,
        "d_initial": 0.1,
        "bias": "none",
    }


def _plain(model: CxrModel, state: AdapterState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Methods ``peft`` does not have: tensors under the network's own names."""
    config = {
        "method": model.config.pet.method,
        "config": model.config.to_flat(),
        "findings": list(model.findings),
        "base_digest": model.base_digest,
    }
    return dict(state.tensors), config


_LAYOUTS: dict[str, Callable[[CxrModel, AdapterState], tuple[dict[str, Tensor], dict[str, Any]]]]
_LAYOUTS = {"ia3": _ia3, "lora": _lora, "vera": _vera}


def _whole(model: CxrModel) -> list[str]:
    """Modules trained whole: the head, and norms beside it."""
    marks = (*_MARKS, CLINICAL_WEIGHT)
    own = (n for n in model.schema.names if not any(mark in n for mark in marks))
    return sorted({name.rpartition(".")[0] for name in own})


def _saved(model: CxrModel, state: AdapterState) -> dict[str, Tensor]:
    """Tensors of the modules trained whole.

    ``peft`` finds them by the end of their names and wants every tensor they hold, so running
    statistics and namesakes (a block's bn2 beside the last bn2) go along as the base has them.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in model.net.named_modules():
        if name.endswith(tuple(_whole(model))):
            for leaf, tensor in module.state_dict().items():
                full = f"{name}.{leaf}"
                tensors[f"{_PREFIX}{full}"] = state.tensors.get(full, tensor.detach().cpu())
    return tensors


def _peft(kind: str, model: CxrModel, targets: list[str]) -> dict[str, Any]:
    return {
        "peft_type": kind,
        "base_model_name_or_path": model.config.model.backbone,
        "target_modules": targets,
        "modules_to_save": _whole(model),
        "inference_mode": True,
        "task_type": None,
    }


def _escape(name: str) -> str:
    return name.replace(".", r"\.")


_CLINICAL_CARD = """
`clinical.safetensors` belongs to it: the logits of the network plus W [z, m], where z are the
variables {} scaled by `common/clinical.py` (0 where missing) and m marks the missing ones.
"""


def _card(model: CxrModel, state: AdapterState, plan_digest: str, method: str) -> str:
    config = model.config
    findings = "\n".join(f"{i}. {name}" for i, name in enumerate(model.findings))
    beside = _CLINICAL_CARD.format(", ".join(config.data.clinical)) if config.data.clinical else ""
    opened = (
        "`peft.PeftModel.from_pretrained(base, FOLDER)` opens it, where `base` is the timm network\n"
        "with `num_classes` equal to the number of findings and the base weights loaded."
        if method in _LAYOUTS
        else "The tensors carry the timm network's own names; `common.model.build` loads them."
    )
    return f"""# fedcxr adapter

An adapter for chest radiographs, trained by {method} across sites that kept their images.

- backbone: `{config.model.backbone}`, {config.data.image_size} px, grey values normalised with
  mean {list(model.mean)} and standard deviation {list(model.std)}
- values in the adapter: {sum(t.numel() for t in state.tensors.values()):,}
- base digest: `{model.base_digest}`
- plan digest: `{plan_digest}`

{opened}
{beside}
## Output

One logit per finding, in this order; a sigmoid makes it a probability, uncalibrated:

{findings}

## Use

Research. Not a medical device, not validated for diagnosis. The run's `report.json` says at which
sites it was measured, and where it was worse than the site's own model.
"""
