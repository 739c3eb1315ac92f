"""What the trained part of the model reads: images, or the frozen prefix's activations, computed once.

When every trained parameter sits behind block k, the blocks before it give the same output for the
same image in every round. They run once per image and stay in memory at the site; nothing of it
leaves. Random augmentation rules it out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.augment import augment, normalise, to_float
from client.data.dataset import SiteData
from common.clinical import scaled
from common.config import TrainConfig
from common.model.build import CxrModel

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of activations kept for one site; beyond it the prefix runs every time."""
_BATCH = 64


class Batch(NamedTuple):
    """What the model reads of some studies."""

    images: Tensor
    """Normalised images ``[B, C, S, S]``, or what the frozen prefix makes of them."""
    clinical: Tensor | None
    """Scaled clinical variables and missing marks ``[B, 2 V]``; None where the plan names none."""


class StudyInputs:
    """Turns study indices into the input of ``logits``."""

    def __init__(self, model: CxrModel, data: SiteData, train: TrainConfig) -> None:
        self._model, self._data = model, data
        self.augment = train.augment
        self.blocks = model.frozen_blocks if train.prefix_cache and not train.augment else 0
        variables = model.config.data.clinical
        self._clinical = torch.from_numpy(scaled(data.clinical, variables)) if variables else None
        self._rows = np.full(len(data.pixels), -1, dtype=np.int64)
        self._hidden: Tensor | None = None
        if self.blocks and self._bytes_needed() <= MEMORY_LIMIT:
            self._fill()

    def _bytes_needed(self) -> int:
        with torch.inference_mode():
            one = self._model.prefix(self._images(self._indices()[:1], None), self.blocks)
        return one.numel() * one.element_size() * len(self._indices())

    def _indices(self) -> NDArray[np.int64]:
        return np.concatenate([self._data.split[name] for name in sorted(self._data.split)])

    def _fill(self) -> None:
        indices = self._indices()
        self._model.train_mode(False)
        with torch.no_grad():
            parts = [
                self._model.prefix(self._images(indices[i : i + _BATCH], None), self.blocks)
                for i in range(0, len(indices), _BATCH)
            ]
        self._hidden = torch.cat(parts)
        self._rows[indices] = np.arange(len(indices))

    def batch(self, indices: NDArray[np.int64], generator: torch.Generator | None = None) -> Batch:
        """Return inputs for some studies; with a generator, randomly augmented if the plan says so."""
        clinical = None if self._clinical is None else self._clinical[indices].to(self._model.device)
        if self._hidden is not None:
            rows = torch.from_numpy(self._rows[indices]).to(self._hidden.device)
            return Batch(self._hidden[rows], clinical)
        return Batch(self._images(indices, generator), clinical)

    def _images(self, indices: NDArray[np.int64], generator: torch.Generator | None) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(self._data.pixels[indices]))
        grey = to_float(pixels.to(self._model.device))
        if generator is not None and self.augment:
            grey = augment(grey, self.augment, generator)
        return normalise(grey, self._model.mean, self._model.std, self._model.channels)

    def logits(self, batch: Batch) -> Tensor:
        """Run the rest of the model: ``[B, F]``."""
        if self._hidden is not None:
            return self._model.suffix(batch.images, self.blocks, batch.clinical)
        return self._model.forward(batch.images, batch.clinical)
