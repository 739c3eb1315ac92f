"""What the trained part of the model reads: studies, or what frozen parts make of them, computed once.

Where a frozen part of the model says the same of a study in every round, that is computed once and kept
under ``data.cache``, for later rounds, runs and other plans; nothing of it leaves. Random augmentation rules
it out, unless a plan draws each image's views once and for all (``train.views``); so do stochastic depth and
dropout in the frozen part, and a residual laid over it. Measuring a model is not random, and reads what is
kept all the same. What is kept is rounded to ``train.cache_dtype``. Where there is room neither on disk nor
in memory it is computed each time and rounded alike: whether a disk is full changes no result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.activations import Digests, Place, Rows, digests_of
from client.augment import DRAWS, augment, augment_as, normalise, to_float, view_draws
from client.data.dataset import SiteData
from client.frozen import Frozen, ImagePrefix, TextReader
from client.outputs import Feed, Outputs, Where
from client.site import SiteConfig
from common.clinical import scaled
from common.errors import DataError
from common.model.build import PREFIXES, CxrModel
from common.model.fusion import TextInput
from common.model.text.encoder import TextTower
from common.model.text.tokens import Tokens
from common.pet.towers import TEXT
from common.phase import first_of_each_phase, trained_names
from common.sections import TrainConfig

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
    cut: int | None = None
    """Where the prefix ends that has run, as `CxrModel.prefix` counts; None: `StudyInputs.blocks`."""


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
    """Turns study indices into the input of ``logits``.

    Made as it is, it fits every model that a plan's rounds of training lead to; ``of_round`` gives the
    inputs of one round, in which less may be trained and more be kept.
    """

    def __init__(
        self, model: CxrModel, data: SiteData, train: TrainConfig, place: Place | None = None
    ) -> None:
        """Take a model and a site's studies; what frozen parts say is kept in ``place``, else in memory.

        Raises:
            DataError: if the plan reads reports and the site's data came without texts.
        """
        self._model = self._base = model
        self._data, self._train, self._place = data, train, place
        self.augment = train.augment
        variables = model.config.data.clinical
        self._clinical = torch.from_numpy(scaled(data.clinical, variables)) if variables else None
        self._tokens: Tokens | None = None
        if model.text is not None:
            self._tokens = _tokenize(model.text, data, model.config.data.text_length)
        self._known: dict[object, Any] = {}
        """What all inputs of this site share: prefixes, their outputs, digests, draws."""
        rounds = first_of_each_phase(model.config)
        self._cut_before({n for r in rounds for n in trained_names(model.schema, model.config, r)})

    def _cut_before(self, trained: set[str]) -> None:
        """Let the frozen parts end before anything that is trained."""
        on = self._train.prefix_cache
        cut: int = self._once(frozenset(trained), lambda: self._base.frozen_cut(trained))
        self._cut = cut if on else 0
        text = any(name.startswith(PREFIXES[TEXT]) for name in trained)
        self._may_keep_text = on and self._tokens is not None and not text

    def of_round(self, number: int) -> StudyInputs:
        """Return the inputs of one round of the plan that the model now follows."""
        other = copy.copy(self)
        other._cut_before({*trained_names(self._base.schema, self._base.config, number)})
        return other

    def of(self, model: CxrModel) -> StudyInputs:
        """Return the inputs of a model with the same network, cut where it has something of its own."""
        other = copy.copy(self)
        other._model, other._cut = model, min(self._cut, model.frozen_blocks)
        return other

    # ------------------------------------------------------------------ what may be kept

    @property
    def blocks(self) -> int:
        """Where the prefix ends whose output a training step reads, as `CxrModel.prefix` counts; 0: none."""
        fresh = self.augment and not self._train.views
        return 0 if fresh or (self._cut and self._prefix.is_random) else self._still

    @property
    def _still(self) -> int:
        """Where the prefix ends when nothing is drawn at random; 0 where a residual lies over it."""
        return self._cut if self._cut and not self._prefix.is_overlaid else 0

    @property
    def image_outputs(self) -> Where:
        """Where the image prefix's outputs are kept; ``nowhere`` also before any was asked for."""
        known = [self._known.get(("image", self._cut, view)) for view in range(self._train.views + 1)]
        return next((of.where for of in known if of is not None), "nowhere")

    @property
    def text_outputs(self) -> Where:
        """Where the text tower's outputs are kept."""
        known = self._known.get("text") if self._may_keep_text else None
        return "nowhere" if known is None else known.where

    @property
    def _keeps_text(self) -> bool:
        return self._may_keep_text and not (self._reader.is_random or self._reader.is_overlaid)

    @property
    def _prefix(self) -> ImagePrefix:
        prefix: ImagePrefix = self._once(("prefix", self._cut), lambda: ImagePrefix(self._base, self._cut))
        return prefix

    @property
    def _reader(self) -> TextReader:
        reader: TextReader = self._once("reader", lambda: TextReader(self._base))
        return reader

    def _once(self, key: object, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _image_outputs(self, view: int) -> Outputs:
        """Return what the prefix says of a view of every image; view 0 is the image itself."""
        beside = {"view": view, "strength": self.augment} if view else {}

        def feed(rows: Rows) -> tuple[Tensor, ...]:
            return (self._images(rows, np.full(len(rows), view)),)

        def make() -> Outputs:
            return self._outputs(self._prefix, feed, self._once("digests", self._digests), beside)

        outputs: Outputs = self._once(("image", self._cut, view), make)
        return outputs

    def _text_outputs(self, tokens: Tokens) -> Outputs:
        """Return what the text tower says of every report."""

        def feed(rows: Rows) -> tuple[Tensor, ...]:
            return self._words(tokens.take(rows))

        def make() -> Outputs:
            reports = np.concatenate([tokens.ids, tokens.mask.astype(np.int32)], axis=1)
            return self._outputs(self._reader, feed, digests_of(reports), {})

        outputs: Outputs = self._once("text", make)
        return outputs

    def _outputs(self, part: Frozen, feed: Feed, digests: Digests, beside: Mapping[str, Any]) -> Outputs:
        others = [rows for name, rows in sorted(self._data.split.items()) if name != "train"]
        together = [self._data.labelled("train"), *others]
        dtype = torch.float16 if self._train.cache_dtype == "fp16" else torch.float32
        return Outputs(part, feed, digests, together, dtype, self._place, beside)

    # ------------------------------------------------------------------ batches

    def batch(
        self,
        indices: NDArray[np.int64],
        generator: torch.Generator | None = None,
        without: Without | None = None,
    ) -> Batch:
        """Return inputs for some studies; with a generator, randomly augmented if the plan says so.

        Raises:
            ModelError: if something is about to be trained in a part whose output is kept.
        """
        training = generator is not None or self._base.net.training
        cut = self.blocks if training else self._still
        clinical = None if self._clinical is None else self._clinical[indices].to(self._model.device)
        text = None if self._tokens is None else self._text(self._tokens, indices, without)
        views = self._drawn_views(indices, generator)
        if cut:
            if training and torch.is_grad_enabled():
                self._prefix.check_still()
            return Batch(self._prefixed(indices, views), clinical, text, cut)
        fresh = None if self._train.views else generator
        return Batch(self._images(indices, views, fresh), clinical, text, 0)

    def told(self, indices: NDArray[np.int64]) -> Tensor:
        """Return which of these studies have a report ``[B]``."""
        if self._tokens is None:
            return torch.zeros(len(indices), dtype=torch.bool)
        return torch.from_numpy(~self._tokens.take(indices).missing)

    def _drawn_views(
        self, indices: NDArray[np.int64], generator: torch.Generator | None
    ) -> NDArray[np.int64]:
        """Draw one of each image's fixed views ``[B]``; 0, the image itself, where the plan has none."""
        count = self._train.views
        if generator is None or not count:
            return np.zeros(len(indices), dtype=np.int64)
        return torch.randint(1, count + 1, (len(indices),), generator=generator).numpy()

    def _prefixed(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        seen = np.unique(views)
        if len(seen) == 1:
            return self._image_outputs(int(seen[0])).take(indices)
        parts = [self._image_outputs(int(view)).take(indices[views == view]) for view in seen]
        back = np.argsort(np.concatenate([np.flatnonzero(views == view) for view in seen]))
        return torch.cat(parts)[torch.from_numpy(back).to(parts[0].device)]

    def _images(
        self,
        indices: NDArray[np.int64],
        views: NDArray[np.int64],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(self._data.pixels[indices]))
        grey = to_float(pixels.to(self._model.device))
        if views.any():
            grey = augment_as(grey, self.augment, self._draws(indices, views))
        elif generator is not None and self.augment:
            grey = augment(grey, self.augment, generator)
        return normalise(grey, self._model.mean, self._model.std, self._model.channels)

    def _draws(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """Return what decides how each image's view looks, ``[6, B]``."""
        drawn: Tensor = self._once("draws", self._draw_views)
        return drawn[torch.from_numpy(views - 1), torch.from_numpy(indices)].T

    def _draw_views(self) -> Tensor:
        """Draw every view of every training image: ``[V, n, 6]``."""
        rows, pictures = self._data.split["train"], self._once("digests", self._digests)
        drawn = torch.full((self._train.views, len(pictures), DRAWS), 0.5)
        for view in range(self._train.views):
            drawn[view, rows] = torch.stack([view_draws(bytes(pictures[row]), view + 1) for row in rows])
        return drawn

    def _digests(self) -> Digests:
        return digests_of(self._data.pixels)

    def _text(self, tokens: Tokens, indices: NDArray[np.int64], without: Without | None) -> TextInput:
        ids, mask = self._words(tokens.take(indices))
        read = self._text_outputs(tokens).take(indices) if self._keeps_text else ids
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
        if text is not None and not self._keeps_text:
            text = text._replace(read=self._model.read_text(text.read, text.mask))
        cut = self.blocks if batch.cut is None else batch.cut
        if cut:
            return self._model.suffix(batch.images, cut, batch.clinical, text)
        return self._model.forward(batch.images, batch.clinical, text)


def activations_place(site: SiteConfig) -> Place:
    """Return where a site keeps what frozen parts make of its studies."""
    return Place(site.data.cache / "activations", int(site.data.activations_limit * 1e9))


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
