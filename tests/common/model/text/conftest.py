"""Small text encoders of every family as their authors would publish them, with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before transformers)
import transformers

from common.config import RunConfig

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "no", "there", "is", "a", "with", "and"),
    *("pleural", "effusion", "edema", "line", "left", "large", "##s", "##al"),
]


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Save a small random encoder with a WordPiece vocabulary; keyword arguments go to its config."""

    def make(family: str = "bert", seed: int = 0, masked_lm: bool = False, **config: Any) -> Path:
        folder = tmp_path / f"{family}-{seed}"
        torch.manual_seed(seed)
        if family == "bert":
            sizes = {
                "hidden_size": 24,
                "num_hidden_layers": 5,
                "num_attention_heads": 3,
                "intermediate_size": 40,
                "max_position_embeddings": 32,
            }
            described: Any = transformers.BertConfig(vocab_size=len(WORDS), **(sizes | config))
            kind: Any = transformers.BertForMaskedLM if masked_lm else transformers.BertModel
        else:
            sizes = {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 32}
            described = transformers.DistilBertConfig(vocab_size=len(WORDS), **(sizes | config))
            kind = transformers.DistilBertForMaskedLM if masked_lm else transformers.DistilBertModel
        net = kind(described)
        for parameter in net.parameters():
            # transformers starts all biases at zero and all norms at one: a mix-up of two would not show
            parameter.data += 0.3 * torch.randn(parameter.shape)
        net.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
        )
        return folder

    return make


@pytest.fixture(scope="session")
def text_config() -> Callable[..., RunConfig]:
    """RunConfig that reads text with an encoder from a folder."""

    def make(encoder: str = "embedded", weights: str | Path = "", length: int = 32) -> RunConfig:
        return RunConfig.from_flat(
            {
                "data.text": True,
                "data.text-length": length,
                "model.text-encoder": encoder,
                "model.text-weights": str(weights),
            }
        )

    return make
