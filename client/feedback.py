"""What a codec lost of a site's updates so far: kept at the site, and added to the next update.

Error feedback (Seide et al. 2014, section 3; Karimireddy et al. 2019, alg. 1): with d the round's delta, e
what is owed and C the codec, the site sends C(d + e) and keeps d + e - C(d + e). Nothing is lost for good, it
only arrives later, so a codec that keeps one value in a hundred still learns what all of them say.

One file per round in a folder of the site's state, by tensor name, because rounds train different tensors.
A round starts from the newest file before it, so one that is asked for again starts from the same one and
gives the same bits. A folder belongs to one run of a plan, a file to one phase of it: another run, and
another phase, begin with nothing owed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from common.adapter import AdapterSchema
from common.codec import decode, encode
from common.files import write_atomic
from common.protocol import CODEC_ERROR, Value
from common.sections import WireConfig

KEPT = 3
"""Newest files that stay: the last round's, what it started from, and one more, should the centre's newest
checkpoint be damaged."""
RUNS = 8
"""Newest runs of which anything stays; each takes as much as ``KEPT`` adapters."""
_DECIMALS = 6
_NAME = re.compile(r"round-(\d{6,})\.safetensors")
_PREFIX = "feedback-"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """An update as it travels."""

    update: NDArray[Any]
    metrics: dict[str, Value] = field(default_factory=dict)
    """The relative error of a codec that loses something."""


@dataclass(frozen=True)
class Owed:
    """Where a run's remainders lie, and which round of which phase is next."""

    folder: Path
    round: int
    phase: str

    def load(self) -> dict[str, Tensor]:
        """Return what is owed before this round, by tensor name; a file that cannot be read owes nothing."""
        for number, file in reversed(self._files()):
            if number >= self.round:
                continue
            try:
                with safe_open(file, framework="pt") as opened:
                    phase = (opened.metadata() or {}).get("phase")
                return load(file.read_bytes()) if phase == self.phase else {}
            except (SafetensorError, OSError):
                logger.warning("what was owed after round %d cannot be read", number)
                return {}
        return {}

    def keep(self, remainder: dict[str, Tensor]) -> None:
        """Keep what is owed after this round; where the disk is full, nothing is owed any more.

        What a former attempt left of later rounds goes.
        """
        new = not self.folder.exists()
        try:
            data = save({n: t.contiguous() for n, t in remainder.items()}, {"phase": self.phase})
            write_atomic(self.folder / f"round-{self.round:06d}.safetensors", data)
        except OSError as error:
            # An older remainder is part of what was just sent: it must not be sent again.
            logger.warning("what is owed after round %d is not kept: %s", self.round, error.strerror)
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        files = self._files()
        for number, file in files:
            if number > self.round:
                file.unlink(missing_ok=True)
        for _, file in [pair for pair in files if pair[0] <= self.round][:-KEPT]:
            file.unlink(missing_ok=True)
        if new:
            _forget_old_runs(self.folder.parent)

    def _files(self) -> list[tuple[int, Path]]:
        found = ((match, file) for file in self.folder.glob("*") if (match := _NAME.fullmatch(file.name)))
        return sorted((int(match[1]), file) for match, file in found)


def feedback_folder(state: Path, plan: str, run: str) -> Path:
    """Return where a site keeps what it owes in a run of a plan, given its folder of state.

    ``run`` came from outside, so only its hash is part of a path.
    """
    return state / f"{_PREFIX}{plan[:16]}-{hashlib.sha256(run.encode()).hexdigest()[:16]}"


def send(delta: dict[str, Tensor], schema: AdapterSchema, wire: WireConfig, owed: Owed) -> Sent:
    """Return a round's ``delta`` as it travels, with what is owed added to it; keeps what is owed then.

    ``schema`` is of the tensors this round trains. An update that is not finite is told as it is, and what
    was owed before it stays owed.
    """
    if wire.codec == "fp32":
        return Sent(encode(schema.pack(delta), wire))
    before = owed.load() if wire.feedback else {}
    known = {name: before[name] for name, shape in schema.shapes if _fits(before.get(name), shape)}
    wanted = schema.pack({name: delta[name] + known.get(name, 0.0) for name in schema.names})
    update = encode(wanted, wire)
    arrived = decode(update, wire, wanted.size)
    if not np.isfinite(arrived).all():
        return Sent(update)
    left = wanted - arrived
    if wire.feedback:
        owed.keep({**before, **schema.unpack(left)})
    whole = float(np.linalg.norm(wanted.astype(np.float64)))
    lost = float(np.linalg.norm(left.astype(np.float64))) / whole if whole else 0.0
    return Sent(update, {CODEC_ERROR: round(min(lost, 1.0), _DECIMALS)})


def _fits(tensor: Tensor | None, shape: tuple[int, ...]) -> bool:
    return tensor is not None and tuple(tensor.shape) == shape and bool(torch.isfinite(tensor).all())


def _forget_old_runs(state: Path) -> None:
    folders = [folder for folder in state.glob(f"{_PREFIX}*") if folder.is_dir()]
    ages = sorted((folder.stat().st_mtime, folder) for folder in folders)
    for _, folder in ages[:-RUNS]:
        shutil.rmtree(folder, ignore_errors=True)
