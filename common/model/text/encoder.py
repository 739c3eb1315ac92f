"""TextTower: a BERT that turns report text into tokens, hidden states and one feature vector each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.config import RunConfig
from common.errors import ModelError
from common.model.text.embedded import load_embedded
from common.model.text.folder import load_folder
from common.model.text.tokens import Tokens
from common.model.text.zoo import EMBEDDED, TextEncoder, find_text_encoder

Tokenize = Callable[[Sequence[str], int], Tokens]

_BLOCKS: Mapping[str, str] = {"bert": "encoder.layer", "distilbert": "transformer.layer"}
"""Family -> the list that holds its blocks."""
_TARGETS: Mapping[str, Mapping[str, str]] = {
    "bert": {
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "proj": "attention.output.dense",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    },
    "distilbert": {
        "q": "attention.q_lin",
        "k": "attention.k_lin",
        "v": "attention.v_lin",
        "proj": "attention.out_lin",
        "fc1": "ffn.lin1",
        "fc2": "ffn.lin2",
    },
}
"""Family -> the names PET uses for a block's linear layers -> their paths within a block."""


class TextTower(nn.Module):
    """An encoder of the BERT family, its tokenizer, and how its hidden states are read.

    Whoever uses it freezes it. Its dropout is off in training too: a frozen tower must say the same
    of the same text, and what is tuned in it brings its own dropout.
    """

    net: nn.Module
    width: int
    """D_t: numbers that describe a text."""
    family: str
    blocks: tuple[str, ...]
    """Names of the transformer blocks within ``net``, first to last."""
    targets: Mapping[str, str]
    """q, k, v, proj, fc1, fc2 -> the path of that linear layer within a block."""

    def __init__(self, net: Any, encoder: TextEncoder, tokenizer: Tokenize) -> None:
        super().__init__()
        self.net = net
        self.encoder = encoder
        self.family = encoder.family
        self.width = int(net.config.hidden_size)
        parent = _BLOCKS[encoder.family]
        self.blocks = tuple(f"{parent}.{i}" for i, _ in enumerate(net.get_submodule(parent).children()))
        self.targets = _TARGETS[encoder.family]
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str], length: int) -> Tokens:
        """Return the first ``length`` tokens of each text; a blank text has none."""
        return self._tokenizer(texts, length)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map ids ``[B, L]`` and their mask to hidden states ``[B, L, D_t]``.

        A missing text is read as one padding token, so that no softmax runs over nothing; what comes
        out of it is finite and means nothing.
        """
        seen = mask.bool().clone()
        seen[:, 0] |= ~seen.any(dim=1)
        several = self.encoder.layers > 1
        out = self.net(input_ids=ids.long(), attention_mask=seen, output_hidden_states=several)
        if several:
            return torch.stack(out.hidden_states[-self.encoder.layers :]).sum(dim=0)
        return out.last_hidden_state

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Turn hidden states ``[B, L, D_t]`` into features ``[B, D_t]``; a missing text's are zero."""
        seen = mask.to(hidden.dtype)[..., None]
        if self.encoder.pool == "cls":
            return hidden[:, 0] * seen.amax(dim=1)
        return (hidden * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1.0)


def load_text_tower(config: RunConfig) -> TextTower:
    """Build the text tower a run names, from this package or a folder; nothing is downloaded.

    Raises:
        ModelError: if the encoder is unknown, or reads fewer tokens than ``data.text_length``.
        WeightsError: if its weights or its tokenizer are missing or do not fit it.
    """
    model = config.model
    if model.text_encoder == "embedded":
        net, tokenizer = load_embedded(model.text_weights, config.seed)
        tower = TextTower(net, EMBEDDED, tokenizer)
    else:
        encoder = find_text_encoder(model.text_encoder)
        net, tokenizer = load_folder(model.text_encoder, encoder, model.text_weights)
        tower = TextTower(net, encoder, tokenizer)
    longest = int(net.config.max_position_embeddings)
    if config.data.text_length > longest:
        raise ModelError(
            f"model.text_encoder {model.text_encoder!r} reads at most {longest} tokens",
            found=f"data.text_length = {config.data.text_length}",
            fix=f"set data.text_length = {longest} or less",
        )
    return tower.eval()
