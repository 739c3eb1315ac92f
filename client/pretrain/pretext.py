"""What pretraining throws away, a decoder or projections, kept between rounds and never sent.

One file per round in a folder of the site's state: what the round ended with. A round starts from the newest
file before it, so a round that is asked for again starts from the same one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from common.errors import CheckpointError
from common.files import write_atomic

KEPT = 2
"""Newest files that stay: the last round's, and what it started from."""
Part = TypeVar("Part", bound=nn.Module)
_NAME = re.compile(r"round-(\d{4,})\.safetensors")


def from_seed(build: Callable[[], Part], seed: int) -> Part:
    """Build what draws its own initial values, from a seed; whoever else draws is not disturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def load_pretext(part: nn.Module, folder: Path, round_number: int) -> None:
    """Fill ``part`` with what the newest round before this one left; without one it stays as it is.

    Raises:
        CheckpointError: if that file is damaged or is not of this plan.
    """
    earlier = [number for number in _rounds(folder) if number < round_number]
    if not earlier:
        return
    file = _file(folder, max(earlier))
    try:
        part.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError):
        raise CheckpointError(
            "what pretraining keeps at this site between rounds cannot be read",
            found=file.name,
            fix=f"remove {folder}: the next round begins it anew",
        ) from None


def save_pretext(part: nn.Module, folder: Path, round_number: int) -> None:
    """Keep what a round ended with, and of the others only the one it can have started from."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in part.state_dict().items()}
    write_atomic(_file(folder, round_number), save(state))
    earlier = sorted(number for number in _rounds(folder) if number < round_number)
    kept = {round_number, *earlier[-(KEPT - 1) :]}
    for number in _rounds(folder):
        if number not in kept:
            _file(folder, number).unlink(missing_ok=True)


def _rounds(folder: Path) -> list[int]:
    names = (_NAME.fullmatch(file.name) for file in folder.glob("round-*.safetensors"))
    return [int(match[1]) for match in names if match]


def _file(folder: Path, number: int) -> Path:
    return folder / f"round-{number:04d}.safetensors"
