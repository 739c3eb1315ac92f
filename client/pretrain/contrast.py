"""Image-text pretraining: tell which report belongs to which radiograph (Zhang et al. 2020, ConVIRT).

The text side is a frozen encoder: each report's features are computed once. Two small projections bring
image and text into one space; they are thrown away after pretraining.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data.unlabelled import Unlabelled
from client.pretrain.pretext import from_seed
from common.model.build import CxrModel
from common.model.text.encoder import TextTower, load_text_tower
from common.seeds import derive

INNER, SHARED = 256, 128
"""Width of the projections' hidden layer and of the space they share."""
_SHARPEST = 50.0
_BATCH = 64


def info_nce(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric contrastive loss of pairs ``[B, D]``, ``[B, D]``.

    Cosine similarities times ``scale`` (one over the temperature); the image finds its text among the
    batch's and the text its image (Zhang et al. 2020, eq. 2 and 3), both counting half (eq. 4).
    """
    image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
    logits = scale * image @ text.T
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


class Projections(nn.Module):
    """Two-layer maps of image and text features into one space, and a learnt temperature."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.text = nn.Sequential(
            nn.LayerNorm(text_width), nn.Linear(text_width, INNER), nn.GELU(), nn.Linear(INNER, SHARED)
        )
        self.image = nn.Sequential(nn.Linear(width, INNER), nn.GELU(), nn.Linear(INNER, SHARED))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the loss of image features ``[B, D]`` and text features ``[B, D_t]`` in pairs."""
        return info_nce(self.image(image), self.text(text), self.log_scale.exp().clamp(max=_SHARPEST))


class ImageText(nn.Module):
    """The task at a site: a model's encoders, and the projections that are thrown away."""

    def __init__(self, model: CxrModel, data: Unlabelled, moved: Sequence[str]) -> None:
        super().__init__()
        own = model.text
        self._model = model
        self._text: Callable[[Tensor], Tensor]
        if own is not None and any(name.startswith("text.") for name in moved):
            self._text = _Reading(own, data, model)
        else:
            self._text = _frozen_features(own, data, model)
        size = model.config.data.image_size
        with torch.no_grad():
            blank = torch.zeros(1, model.channels, size, size, device=model.device)
            width = model.image_features(blank).shape[1]
            text_width = self._text(torch.zeros(1, dtype=torch.int64)).shape[1]
        seed = derive(model.config.seed, "projections")
        self.projections = from_seed(lambda: Projections(width, text_width), seed)

    def forward(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss of normalised images ``[B, C, S, S]`` and the reports ``chosen`` ``[B]``."""
        text = self._text(chosen).to(images.device)
        loss: Tensor = self.projections(self._model.image_features(images).float(), text.float())
        return loss


class _Reading:
    """Runs a text tower on some of the reports, each time anew."""

    def __init__(self, tower: TextTower, data: Unlabelled, model: CxrModel) -> None:
        tokens = tower.tokenize(data.texts, model.config.data.text_length)
        self._ids, self._mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
        self._tower, self._device = tower, model.device

    def __call__(self, rows: Tensor) -> Tensor:
        ids, mask = self._ids[rows].to(self._device), self._mask[rows].to(self._device)
        return self._tower.pooled(self._tower.hidden(ids, mask), mask)


_FEATURES: WeakKeyDictionary[Unlabelled, tuple[tuple[str, str, int], Tensor]] = WeakKeyDictionary()
"""What a frozen tower makes of a site's reports, and which tower: the same in every round."""


def _frozen_features(own: TextTower | None, data: Unlabelled, model: CxrModel) -> Callable[[Tensor], Tensor]:
    """Run the frozen tower once over every report; returns how to look the features ``[B, D_t]`` up."""
    plan = model.config
    key = (plan.model.text_encoder, plan.model.text_weights, plan.data.text_length)
    known = _FEATURES.get(data)
    if known is None or known[0] != key:
        tower = own if own is not None else load_text_tower(plan).to(model.device)
        read = _Reading(tower, data, model)
        with torch.no_grad():
            parts = [read(rows).float().cpu() for rows in torch.arange(len(data)).split(_BATCH)]
        known = _FEATURES[data] = key, torch.cat(parts)
    return known[1].__getitem__
