"""The embedded text encoder: a small BERT of ours over hashed words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before transformers)

from common.errors import WeightsError
from common.model.text.tokens import Tokens
from common.model.text.words import PAD, VOCABULARY, tokenize_words

if TYPE_CHECKING:
    from transformers import BertModel

FILE = "bert_micro_words.safetensors"
"""Our own small BERT, pretrained on the reports of procedural radiographs; its card lies beside it."""
LONGEST = 512
"""Tokens it has positions for."""


def build_embedded(seed: int) -> BertModel:
    """Build the architecture (128 wide, 4 blocks, 4 heads) with random weights."""
    from transformers import BertConfig, BertModel

    described = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LONGEST,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertModel(described, add_pooling_layer=False)


def embedded_text_file() -> Path:
    """Return the weights: in this package's folder, or in the package installed.

    A Flower App Bundle carries code only and its copy of this package comes first on the path, so
    the weights are looked for along the rest of it.
    """
    beside = Path(__file__).parents[1] / "embedded" / FILE
    installed = (Path(entry) / "common" / "model" / "embedded" / FILE for entry in sys.path)
    return next((file for file in (beside, *installed) if file.is_file()), beside)


def load_embedded(weights: str, seed: int) -> tuple[BertModel, Callable[[Sequence[str], int], Tokens]]:
    """Return the encoder, with this package's weights or those of a safetensors file, and its tokenizer.

    Raises:
        WeightsError: if the file is missing, is not safetensors, or its tensors are not exactly the
            architecture's.
    """
    file = Path(weights).expanduser() if weights else embedded_text_file()
    if file.is_dir():
        raise WeightsError(
            f"{file}: a folder, and the embedded text encoder reads a file",
            fix="name the folder's encoder in model.text_encoder, for example 'bert'",
        )
    if not file.is_file():
        raise WeightsError(f"{file}: no such weights file", fix="check model.text_weights")
    if file.suffix != ".safetensors":
        raise WeightsError(
            f"{file.name}: only safetensors files are loaded",
            found=file.suffix or "no suffix",
            fix="leave model.text_weights empty to use the weights of this package",
        )
    try:
        state = {name: tensor.float() for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError):
        raise WeightsError(f"{file}: not a readable safetensors file") from None
    net = build_embedded(seed)
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != given:
        odd = sorted(name for name in {*own, *given} if own.get(name) != given.get(name))
        raise WeightsError(
            f"{file.name}: these are not the weights of the embedded text encoder",
            found=f"{len(odd)} tensors are missing, unknown or of another shape, such as {odd[0]}",
            fix="leave model.text_weights empty to use the weights of this package",
        )
    net.load_state_dict(state)
    return net, tokenize_words
