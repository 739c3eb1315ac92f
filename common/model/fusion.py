"""How a study's report meets its image, and what stands in for one that is missing.

``B`` batch, ``D`` image features, ``T`` text features, ``L`` tokens, ``F`` findings.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.config import RunConfig
from common.seeds import torch_generator

TEXT_HEAD = "fusion.text_head.weight"
"""Weights ``[F, T]`` of the report, one row per finding, where one linear head reads both."""
ATTENTION_WIDTH = 64
"""Width in which image features and tokens are compared."""
ATTENTION_HEADS = 4


class TextInput(NamedTuple):
    """What the text tower makes of a batch's reports."""

    read: Tensor
    """``[B, T]``, or ``[B, L, T]`` where the fusion reads tokens."""
    mask: Tensor
    """``[B, L]``: True where a token is; a row without any is a missing report."""
    no_image: Tensor | None = None
    """``[B]``: studies whose image is missing; None: no study's is."""


class Fusion(nn.Module, ABC):
    """Reads image and report together; learnt vectors stand in for what is missing."""

    reads_tokens = False
    """Whether it reads every token, or one vector per report."""

    def __init__(self, image: int, text: int) -> None:
        """Take the width of either's features; a stand-in starts at zero: it says nothing yet."""
        super().__init__()
        self.missing_image = nn.Parameter(torch.zeros(image))
        self.missing_text = nn.Parameter(torch.zeros(text))

    def forward(self, image: Tensor, text: TextInput, head: nn.Module) -> Tensor:
        """Map image features ``[B, D]`` and reports to logits ``[B, F]`` by the image's own ``head``."""
        if text.no_image is not None:
            image = torch.where(text.no_image[:, None], self.missing_image, image)
        there = text.mask.any(dim=1)
        if not self.reads_tokens:
            read = torch.where(there[:, None], text.read, self.missing_text)
            return self.join(image, read, text.mask, head)
        read = torch.where(there[:, None, None], text.read, self.missing_text)
        mask = text.mask.clone()
        mask[:, 0] |= ~there  # the stand-in is one token
        return self.join(image, read, mask, head)

    def no_text(self, count: int) -> TextInput:
        """Return the input of as many studies without a report."""
        device, width = self.missing_text.device, len(self.missing_text)
        tokens = (count, 1, width) if self.reads_tokens else (count, width)
        mask = torch.zeros(count, 1, dtype=torch.bool, device=device)
        return TextInput(torch.zeros(tokens, device=device), mask)

    @abstractmethod
    def join(self, image: Tensor, text: Tensor, mask: Tensor, head: nn.Module) -> Tensor:
        """Return logits ``[B, F]``; nothing is missing any more."""


class Concatenation(Fusion):
    """One linear head over [image; text], which is the sum of one over each; text starts at zero."""

    def __init__(self, image: int, text: int, findings: int) -> None:
        super().__init__(image, text)
        self.text_head = nn.Linear(text, findings, bias=False)
        nn.init.zeros_(self.text_head.weight)

    def join(self, image: Tensor, text: Tensor, mask: Tensor, head: nn.Module) -> Tensor:
        """Add the two heads."""
        said: Tensor = head(image)
        return said + self.text_head(text)


class GatedUnit(Fusion):
    """The gated multimodal unit of Arevalo et al. 2017, section 3.1, for two modalities."""

    def __init__(self, image: int, text: int, generator: torch.Generator) -> None:
        super().__init__(image, text)
        self.image = nn.Linear(image, image, bias=False)
        self.text = nn.Linear(text, image, bias=False)
        self.gate = nn.Linear(image + text, image, bias=False)
        for layer in (self.image, self.text, self.gate):
            nn.init.xavier_uniform_(layer.weight, generator=generator)

    def join(self, image: Tensor, text: Tensor, mask: Tensor, head: nn.Module) -> Tensor:
        """Gate ``h = z * h_v + (1 - z) * h_t`` (the unit's last equation), which the head reads."""
        seen, read = torch.tanh(self.image(image)), torch.tanh(self.text(text))  # [B, D]
        z = torch.sigmoid(self.gate(torch.cat([image, text], dim=1)))
        said: Tensor = head(z * seen + (1 - z) * read)
        return said


class CrossAttention(Fusion):
    """Image features ask the report's tokens (Vaswani et al. 2017, eq. 1) and what they hear is added.

    The output projection starts at zero, so the model starts as the image model.
    """

    reads_tokens = True

    def __init__(self, image: int, text: int, generator: torch.Generator) -> None:
        super().__init__(image, text)
        self.query = nn.Linear(image, ATTENTION_WIDTH)
        self.key = nn.Linear(text, ATTENTION_WIDTH)
        self.value = nn.Linear(text, ATTENTION_WIDTH)
        self.out = nn.Linear(ATTENTION_WIDTH, image)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def join(self, image: Tensor, text: Tensor, mask: Tensor, head: nn.Module) -> Tensor:
        """Attend with `ATTENTION_HEADS` heads of width ``w``: softmax(q k / sqrt(w)) v."""
        split = (ATTENTION_HEADS, ATTENTION_WIDTH // ATTENTION_HEADS)
        query = self.query(image).unflatten(1, split)  # [B, H, w]
        key, value = self.key(text).unflatten(2, split), self.value(text).unflatten(2, split)  # [B, L, H, w]
        scores = torch.einsum("bhw,blhw->bhl", query, key) / math.sqrt(split[1])
        share = scores.masked_fill(~mask[:, None], -math.inf).softmax(dim=2)
        heard = torch.einsum("bhl,blhw->bhw", share, value).flatten(1)  # [B, H w]
        said: Tensor = head(image + self.out(heard))
        return said


def build_fusion(config: RunConfig, image: int, text: int) -> Fusion:
    """Make what joins features of these widths, from the run's seed."""
    generator = torch_generator(config.seed, "fusion")
    kind = config.model.fusion
    with torch.random.fork_rng(devices=[]):  # layers draw before they are drawn from the generator
        if kind == "gated":
            return GatedUnit(image, text, generator)
        if kind == "cross-attention":
            return CrossAttention(image, text, generator)
        return Concatenation(image, text, len(config.data.findings))
