"""The newest adapter a site had from the centre, so that the next one need not be sent whole.

An instruction that names an adapter by its digest is followed if the site holds that adapter, or the one
before it, to which the change that came along is added. What results is checked against the digest: a site
never works on an adapter that the centre did not name. Where neither is here, the answer is E_CHECKPOINT, and
the centre sends all of it.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from common.adapter import AdapterSchema, AdapterState
from common.codec import adapter_digest, decode, downward
from common.config import RunConfig
from common.errors import CheckpointError, SchemaError
from common.files import write_atomic
from common.phase import trained_names
from common.protocol import Instruction

FILE = "adapter.safetensors"
_VALUES = "values"
logger = logging.getLogger(__name__)

Flat = NDArray[np.float32]


def whole(instruction: Instruction, schema: AdapterSchema, config: RunConfig, file: Path) -> Instruction:
    """Return an instruction with the adapter it names, and keep that adapter in ``file``.

    One that names none is returned as it is; where the disk is full, the adapter is only not kept.

    Raises:
        CheckpointError: if neither the adapter nor the one before it is here, or what results is not the one
            that is named.
        SchemaError: if the adapter or the change is not one of this model.
    """
    if not instruction.named:
        return instruction
    held = _read(file)
    is_held = held is not None and adapter_digest(held) == instruction.named
    adapter = instruction.adapter
    if adapter is None:
        adapter = held if is_held else _made_here(held, instruction, schema, config)
    elif adapter_digest(adapter) != instruction.named:
        raise SchemaError("the instruction carries another adapter than the one it names")
    if not is_held and adapter is not None:
        _keep(adapter, file)
    return dataclasses.replace(instruction, adapter=adapter, change=None)


def _made_here(held: Flat | None, instruction: Instruction, schema: AdapterSchema, config: RunConfig) -> Flat:
    if held is None or held.size != schema.numel or instruction.change is None:
        raise _not_here()
    moved = schema.select(trained_names(schema, config, instruction.round - 1))
    delta = moved.unpack(decode(instruction.change, downward(config.wire), moved.numel))
    adapter = schema.pack(AdapterState(schema.unpack(held), {}).plus(delta).tensors)
    if adapter_digest(adapter) != instruction.named:
        raise _not_here()
    return adapter


def _keep(adapter: Flat, file: Path) -> None:
    try:
        values = torch.from_numpy(np.array(adapter, dtype=np.float32))
        write_atomic(file, save({_VALUES: values}))
    except OSError as error:
        logger.warning("the adapter is not kept: %s", error.strerror)


def _read(file: Path) -> Flat | None:
    """Return the adapter that is held; a file that cannot be read is as good as none."""
    try:
        values: Flat = load(file.read_bytes())[_VALUES].numpy()
        return values if values.ndim == 1 and values.dtype == np.float32 else None
    except (OSError, SafetensorError, KeyError):
        return None


def _not_here() -> CheckpointError:
    return CheckpointError("the adapter that the centre names is not held here; it sends all of it")
