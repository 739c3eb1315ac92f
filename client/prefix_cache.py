"""What the trained part of the model reads: studies, or what frozen parts make of them, computed once.

When every trained parameter sits behind block k, the blocks before it give the same output for the
same image in every round. They run once per image and stay in memory at the site; nothing of it
leaves. Random augmentation and stochastic depth rule it out. A text tower in which nothing is trained
runs once per report likewise.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.augment import augment, normalise, to_float
from client.data.dataset import SiteData
from common.clinical import scaled
from common.errors import DataError
from common.model.build import CxrModel
from common.model.fusion import TextInput
from common.model.text.encoder import TextTower
from common.model.text.tokens import Tokens
from common.sections import TrainConfig

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of activations kept for one site; what goes beyond it is computed every time."""
_BATCH = 64

Modality = Literal["", "text", "image"]


class Without(NamedTuple):
    """Which of a batch's studies come to the model without a part of them."""

    text: Tensor
    """``[B]``: these come without their report."""
    image: Tensor
    """``[B]``: these come without their image."""


class Batch(NamedTuple):
    """What the model reads of some studies."""

    images: Tensor
    """Normalised images ``[B, C, S, S]``, or what the frozen prefix makes of them."""
    clinical: Tensor | None
    """Scaled clinical variables and missing marks ``[B, 2 V]``; None where the plan names none."""
    text: TextInput | None = None
    """Reports; ``read`` holds tokens ``[B, L]`` where the text tower has yet to run."""


def leave_out(count: int, missing: Modality) -> Without | None:
    """Leave a part of all studies out.

    >>> leave_out(2, "text").text.tolist()
    [True, True]
    """
    if not missing:
        return None
    return Without(torch.full((count,), missing == "text"), torch.full((count,), missing == "image"))


def drop_modalities(told: Tensor, share: float, generator: torch.Generator) -> Without | None:
    """Draw studies that come without their report, and as many others without their image.

    ``told`` ``[B]`` marks those that have a report: the others keep their image. With a share above one
    half the rest come without their image.
    """
    if not share:
        return None
    drawn = torch.rand(len(told), generator=generator)
    return Without(drawn < share, (drawn >= share) & (drawn < 2 * share) & told)


class StudyInputs:
    """Turns study indices into the input of ``logits``."""

    def __init__(self, model: CxrModel, data: SiteData, train: TrainConfig) -> None:
        self._model, self._data = model, data
        self.augment = train.augment
        random = train.augment or model.config.model.drop_path
        self.blocks = model.frozen_blocks if train.prefix_cache and not random else 0
        variables = model.config.data.clinical
        self._clinical = torch.from_numpy(scaled(data.clinical, variables)) if variables else None
        self._indices = np.concatenate([data.split[name] for name in sorted(data.split)])
        self._rows = np.full(len(data.pixels), -1, dtype=np.int64)
        self._rows[self._indices] = np.arange(len(self._indices))
        self._hidden: Tensor | None = None
        self._read: Tensor | None = None
        room = MEMORY_LIMIT
        if self.blocks and len(self._indices) and (needed := self._bytes_needed()) <= room:
            self._hidden = self._run_prefix(self._indices)
            room -= needed
        self._tokens: Tokens | None = None
        if model.text is not None:
            self._tokens = _tokenize(model.text, data, model.config.data.text_length)
            if train.prefix_cache and model.text_is_frozen and len(self._indices):
                self._read = self._run_text(self._tokens, room)

    def _bytes_needed(self) -> int:
        one = self._run_prefix(self._indices[:1])
        return one.numel() * one.element_size() * len(self._indices)

    def _run_prefix(self, indices: NDArray[np.int64]) -> Tensor:
        self._model.train_mode(False)
        with torch.no_grad():
            parts = [
                self._model.prefix(self._images(indices[i : i + _BATCH], None), self.blocks)
                for i in range(0, len(indices), _BATCH)
            ]
        return torch.cat(parts)

    def _run_text(self, tokens: Tokens, room: int) -> Tensor | None:
        """Run the frozen text tower over every report, unless what it makes of them takes too much room."""
        self._model.train_mode(False)
        parts: list[Tensor] = []
        with torch.no_grad():
            for i in range(0, len(self._indices), _BATCH):
                ids, mask = self._words(tokens.take(self._indices[i : i + _BATCH]))
                parts.append(self._model.read_text(ids, mask))
                each = parts[0][0].numel() * parts[0].element_size()
                if each * len(self._indices) > room:
                    return None
        return torch.cat(parts)

    def batch(
        self,
        indices: NDArray[np.int64],
        generator: torch.Generator | None = None,
        without: Without | None = None,
    ) -> Batch:
        """Return inputs for some studies; with a generator, randomly augmented if the plan says so."""
        clinical = None if self._clinical is None else self._clinical[indices].to(self._model.device)
        text = None if self._tokens is None else self._text(self._tokens, indices, without)
        if self._hidden is not None:
            return Batch(self._kept(self._hidden, indices), clinical, text)
        return Batch(self._images(indices, generator), clinical, text)

    def told(self, indices: NDArray[np.int64]) -> Tensor:
        """Return which of these studies have a report ``[B]``."""
        if self._tokens is None:
            return torch.zeros(len(indices), dtype=torch.bool)
        return torch.from_numpy(~self._tokens.take(indices).missing)

    def _kept(self, kept: Tensor, indices: NDArray[np.int64]) -> Tensor:
        return kept[torch.from_numpy(self._rows[indices]).to(kept.device)]

    def _images(self, indices: NDArray[np.int64], generator: torch.Generator | None) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(self._data.pixels[indices]))
        grey = to_float(pixels.to(self._model.device))
        if generator is not None and self.augment:
            grey = augment(grey, self.augment, generator)
        return normalise(grey, self._model.mean, self._model.std, self._model.channels)

    def _text(self, tokens: Tokens, indices: NDArray[np.int64], without: Without | None) -> TextInput:
        ids, mask = self._words(tokens.take(indices))
        read = ids if self._read is None else self._kept(self._read, indices)
        if without is None:
            return TextInput(read, mask)
        no_text, no_image = without.text.to(mask.device), without.image.to(mask.device)
        return TextInput(read, mask & ~no_text[:, None], no_image)

    def _words(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        device = self._model.device
        return torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.mask).to(device)

    def logits(self, batch: Batch) -> Tensor:
        """Run the rest of the model: ``[B, F]``."""
        text = batch.text
        if text is not None and self._read is None:
            text = text._replace(read=self._model.read_text(text.read, text.mask))
        if self._hidden is not None:
            return self._model.suffix(batch.images, self.blocks, batch.clinical, text)
        return self._model.forward(batch.images, batch.clinical, text)


def _tokenize(tower: TextTower, data: SiteData, length: int) -> Tokens:
    """Number the words of every study's report.

    Raises:
        DataError: if the site's data came without texts.
    """
    if len(data.texts) != len(data.pixels):
        raise DataError(
            "the plan reads reports, and the site's studies came without them",
            found=f"{len(data.texts)} texts for {len(data.pixels)} studies",
        )
    return tower.tokenize(data.texts, length)
