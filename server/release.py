"""The release: a folder ``peft`` opens (LoRA, VeRA, IA3) or plain safetensors, with a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from common.adapter import AdapterState
from common.files import READABLE, write_atomic
from common.model.build import CLINICAL_WEIGHT, FUSION, PREFIXES, CxrModel
from common.pet.targets import TextCut
from common.pet.towers import TEXT, VISION, is_adapted, tower_seed
from server.encoder import ENCODER, encoder_tensors
from server.release_card import write_card
from server.release_layout import Part, lay_out

ADAPTER = "adapter_model.safetensors"
CLINICAL = "clinical.safetensors"
JOINED = "fusion.safetensors"


def write_release(model: CxrModel, state: AdapterState, folder: Path, plan_digest: str) -> str:
    """Write adapter, config and card; returns the SHA-256 of ``adapter_model.safetensors``.

    The head is saved whole. A model that reads reports has its text tower's adapter in ``text/`` and
    what joins the towers in ``fusion.safetensors``; an encoder that pretraining moved is a file of
    weights. The hashes of these stand in the metadata of ``adapter_model.safetensors``.
    """
    told = {"plan": plan_digest}
    if model.clinical is not None:
        variables = {"variables": ", ".join(model.config.data.clinical)}
        _write(folder / CLINICAL, {CLINICAL_WEIGHT: state.tensors[CLINICAL_WEIGHT]}, told | variables)
    hashes: dict[str, str] = {}
    if encoder := encoder_tensors(model, state):
        hashes["encoder"] = _write(folder / ENCODER, encoder, told)
    if model.fusion is not None:
        hashes["fusion"] = _write(folder / JOINED, _beginning(state.tensors, FUSION), told | _read_by(model))
    if model.text is not None and not model.text_is_frozen:
        hashes["text"] = _write_tower(_text_part(model, state), True, folder / "text", told)
    adapted = is_adapted(model.config, VISION)
    digest = _write_tower(_vision_part(model, state), adapted, folder, told | hashes)
    write_card(model, state, plan_digest, folder / "README.md")
    return digest


def is_release(folder: Path, digest: str) -> bool:
    """Whether a folder holds the release of that digest, whole: the adapter, and each file it names."""
    files = {"encoder": folder / ENCODER, "fusion": folder / JOINED, "text": folder / "text" / ADAPTER}
    if _sha256(folder / ADAPTER) != digest:
        return False
    with safe_open(folder / ADAPTER, framework="pt") as opened:
        told = opened.metadata() or {}
    return all(_sha256(file) == told[name] for name, file in files.items() if name in told)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _write_tower(part: Part, adapted: bool, folder: Path, told: Mapping[str, str]) -> str:
    (tensors, config), name = lay_out(part, adapted)
    digest = _write(folder / ADAPTER, tensors, told)
    write_atomic(folder / name, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), READABLE)
    return digest


def _write(file: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> str:
    """Write tensors and return the file's SHA-256."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = _in_order(save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(told)))
    write_atomic(file, data, READABLE)
    return hashlib.sha256(data).hexdigest()


def _in_order(data: bytes) -> bytes:
    """Put the metadata of safetensors bytes in order: the library writes it in any, and digests differ."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(start - 8)
    return data[:8] + ordered + data[start:]


def _beginning(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_by(model: CxrModel) -> dict[str, str]:
    """What a program needs to read reports as the model does."""
    config = model.config
    return {
        "fusion": config.model.fusion,
        "text-encoder": config.model.text_encoder,
        "text-length": str(config.data.text_length),
        "redaction": config.data.redaction,
    }


def _vision_part(model: CxrModel, state: AdapterState) -> Part:
    tuned = state.tensors if model.schema.tuned is None else model.schema.tuned
    text = PREFIXES[TEXT] if model.text is not None else FUSION
    beside = (CLINICAL_WEIGHT, FUSION, text)
    return Part(
        model.net,
        model.arch,
        model.config,
        tower_seed(model.config, VISION),
        model.config.model.backbone,
        model.base_digest,
        {name: state.tensors[name] for name in tuned if not name.startswith(beside)},
        {layer: factors for layer, factors in state.residual.items() if not layer.startswith(text)},
    )


def _text_part(model: CxrModel, state: AdapterState) -> Part:
    tower, prefix = model.text, PREFIXES[TEXT]
    if tower is None:
        raise ValueError("this model has no text tower")
    return Part(
        tower.net,
        TextCut(tower.family, tower.blocks, tower.targets),
        model.config,
        tower_seed(model.config, TEXT),
        model.config.model.text_encoder,
        model.base_digest,
        {n.removeprefix(prefix): t for n, t in _beginning(state.tensors, prefix).items()},
        {n.removeprefix(prefix): f for n, f in state.residual.items() if n.startswith(prefix)},
    )
