"""One folder per committed round: atomic, hash-manifested, resumable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from common.adapter import AdapterState
from common.errors import CheckpointError, SchemaError
from common.files import sync_folder, write_atomic

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything the next round needs, and the record of the rounds' outcome."""

    round: int
    state: AdapterState
    memory: dict[str, Tensor]
    record: dict[str, Any]


def commit(folder: Path, checkpoint: Checkpoint, plan_digest: str) -> None:
    """Write a round: files, flush, manifest with their hashes, flush, rename, flush the folder."""
    final = folder / f"round-{checkpoint.round:04d}"
    temporary = folder / f".{final.name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    files = {
        "adapter.safetensors": checkpoint.state.to_bytes(),
        "memory.safetensors": save({n: t.contiguous() for n, t in checkpoint.memory.items()}),
    }
    for name, data in files.items():
        write_atomic(temporary / name, data)
    manifest = {
        "round": checkpoint.round,
        "plan": plan_digest,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "record": checkpoint.record,
    }
    write_atomic(temporary / _MANIFEST, json.dumps(manifest, sort_keys=True).encode())
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync_folder(folder)


def read(folder: Path, round_number: int, plan_digest: str) -> Checkpoint:
    """Read one round and check every hash.

    Raises:
        CheckpointError: if it is missing, damaged, or belongs to another plan.
    """
    place = folder / f"round-{round_number:04d}"
    try:
        manifest = json.loads((place / _MANIFEST).read_text())
        data = {name: (place / name).read_bytes() for name in manifest["sha256"]}
        sound = all(
            hashlib.sha256(data[name]).hexdigest() == digest for name, digest in manifest["sha256"].items()
        )
        if not sound or manifest["round"] != round_number:
            raise CheckpointError(f"{place.name}: a file differs from what the manifest says")
        plan, record = manifest["plan"], manifest["record"]
        state = AdapterState.from_bytes(data["adapter.safetensors"])
        memory = load(data["memory.safetensors"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, SchemaError):
        raise CheckpointError(
            f"{place.name}: missing or damaged",
            fix="resume falls back to the newest sound round when this folder is removed",
        ) from None
    if plan != plan_digest:
        raise CheckpointError(
            f"{place.name} belongs to another plan",
            found=f"{plan[:12]}, expected {plan_digest[:12]}",
            fix="use another --out folder, or the settings this folder was started with",
        )
    return Checkpoint(round_number, state, memory, record)


def committed(folder: Path) -> list[int]:
    """Return the numbers of the rounds on disk, in order."""
    numbers = (p.name.removeprefix("round-") for p in folder.glob("round-*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def sound_rounds(folder: Path, plan_digest: str) -> Iterator[Checkpoint]:
    """Yield rounds from the first until one is damaged or missing; what follows is removed.

    Raises:
        CheckpointError: if a sound round belongs to another plan.
    """
    numbers = committed(folder)
    for position, number in enumerate(numbers):
        try:
            if number != position + 1:
                raise CheckpointError(f"round {position + 1} is missing")
            yield read(folder, number, plan_digest)
        except CheckpointError as error:
            if "another plan" in error.problem:
                raise
            for later in numbers[position:]:
                shutil.rmtree(folder / f"round-{later:04d}")
            return
