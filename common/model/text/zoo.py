"""The text encoders a plan can name, and how each one's hidden states become features.

A frozen BERT's first token was trained to tell the next sentence and DistilBERT's for nothing, so the
mean over tokens is read, except where the encoder was trained through its first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from common.errors import ModelError, closest

Family = Literal["bert", "distilbert"]


@dataclass(frozen=True)
class TextEncoder:
    """How one encoder is read."""

    family: Family
    pool: Literal["mean", "cls"] = "mean"
    """Mean over a text's tokens, or its first token."""
    layers: int = 1
    """The sum of this many last layers is what pooling and attention see."""
    model_types: tuple[str, ...] = ()
    """``model_type`` its ``config.json`` may say beside the family's own."""
    source: str = ""
    """Where its authors publish it."""

    def accepts(self, model_type: str) -> bool:
        """Whether a folder whose ``config.json`` says this type can be this encoder."""
        return model_type in (self.family, *self.model_types)


EMBEDDED = TextEncoder("bert", source="this package")
"""Our own small BERT over hashed words."""

TEXT_ENCODERS: Mapping[str, TextEncoder] = {
    # GLoRIA (Huang et al. 2021) sums the last four layers, then takes the mean over the tokens
    "bio-clinicalbert": TextEncoder("bert", layers=4, source="emilyalsentzer/Bio_ClinicalBERT"),
    # trained by a contrast of its first token with images; BERT's layout under a type of its own
    "cxr-bert": TextEncoder(
        "bert", pool="cls", model_types=("cxr-bert",), source="microsoft/BiomedVLP-CXR-BERT-specialized"
    ),
    "distilbert": TextEncoder("distilbert", source="distilbert/distilbert-base-uncased"),
    "minilm": TextEncoder("bert", source="sentence-transformers/all-MiniLM-L6-v2"),
    "bert": TextEncoder("bert", source="google-bert/bert-base-uncased"),
}
"""Name -> how it is read; the weights are a folder the plan or the site names."""


def find_text_encoder(name: str) -> TextEncoder:
    """Look an encoder up by name.

    Raises:
        ModelError: if there is none of that name.
    """
    if name not in TEXT_ENCODERS:
        known = f"one of embedded, {', '.join(TEXT_ENCODERS)}"
        raise ModelError(
            f"model.text_encoder: there is no text encoder {name!r}",
            fix="; ".join(filter(None, (closest(name, ("embedded", *TEXT_ENCODERS)), known))),
        )
    return TEXT_ENCODERS[name]
