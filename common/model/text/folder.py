"""Load a text encoder and its tokenizer from a folder in transformers layout, offline.

The classes are transformers' own: code that a folder brings is never run, and no pickle is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before transformers)

from common.errors import WeightsError
from common.model.text.tokens import Tokens, pad
from common.model.text.zoo import Family, TextEncoder

_NO_DROPOUT: Mapping[Family, dict[str, Any]] = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
}
_ORIGIN = ("architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version")
"""What a ``config.json`` says of where it comes from, its own classes among it."""


def load_folder(
    name: str, encoder: TextEncoder, weights: str
) -> tuple[Any, Callable[[Sequence[str], int], Tokens]]:
    """Return the encoder in fp32, without a pooler and with dropout off, and its tokenizer.

    Raises:
        WeightsError: if no folder is named, or it is not this encoder's, or lacks a part.
    """
    if not weights:
        raise WeightsError(
            f"model.text_encoder = {name!r} needs a folder of weights",
            fix=f"set model.text_weights to a folder with the files of {encoder.source}",
        )
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder", fix="check model.text_weights")
    described = _read_config(folder, name, encoder)
    net = _load_net(folder, encoder.family, described)
    return net, _load_tokenizer(folder, net.config.vocab_size)


def _read_config(folder: Path, name: str, encoder: TextEncoder) -> dict[str, Any]:
    held = sorted(path.name for path in folder.iterdir())
    if "config.json" not in held:
        raise WeightsError(
            f"{folder}: not a folder in transformers layout",
            found="no config.json",
            fix="check model.text_weights",
        )
    try:
        described = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise WeightsError(f"{folder / 'config.json'}: not valid JSON") from None
    kind = str(described.get("model_type", ""))
    if not encoder.accepts(kind):
        raise WeightsError(
            f"{folder}: these are not the weights of model.text_encoder = {name!r}",
            found=f"model_type {kind!r}, expected {encoder.family!r}",
            fix="name the encoder of this folder in model.text_encoder",
        )
    if not any(file.endswith(".safetensors") for file in held):
        raise WeightsError(
            f"{folder}: the folder holds no weights in safetensors",
            found=", ".join(held[:4]) + (f" (+{len(held) - 4})" if held[4:] else ""),
            fix="where you trust a .bin file, load it with transformers elsewhere and save_pretrained it",
        )
    if not {"tokenizer.json", "vocab.txt"} & {*held}:
        raise WeightsError(
            f"{folder}: the folder holds no tokenizer", fix="add tokenizer.json or vocab.txt from its source"
        )
    return described


def _load_net(folder: Path, family: Family, described: Mapping[str, Any]) -> Any:
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = {k: v for k, v in described.items() if k not in _ORIGIN} | _NO_DROPOUT[family]
    arguments: dict[str, Any] = {}
    if family == "bert":
        kind: Any = transformers.BertModel
        arguments = {"add_pooling_layer": False, "config": transformers.BertConfig(**settings)}
    else:
        kind = transformers.DistilBertModel
        arguments = {"config": transformers.DistilBertConfig(**settings)}
    try:
        with torch.random.fork_rng(devices=[]):
            net, told = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                **arguments,
            )
    except (SafetensorError, OSError):
        raise WeightsError(f"{folder}: the weights are not readable safetensors") from None
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{folder}: the weights do not fit config.json", found=str(error).partition("\n")[0][:200]
        ) from None
    if missing := sorted(told["missing_keys"]):
        raise WeightsError(
            f"{folder}: {len(missing)} tensors the architecture needs are not in the folder",
            found=f"missing {', '.join(missing[:3])}",
            fix="check that model.text_encoder names the encoder of these weights",
        )
    return net


def _load_tokenizer(folder: Path, vocabulary: int) -> Callable[[Sequence[str], int], Tokens]:
    from transformers import AutoTokenizer, BertTokenizer

    # A site's decoders are processes of their own, and threads of a tokenizer do not survive a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        kind = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kind = {}
    # A class of the folder's own would have to be run; those of the BERT family add nothing to BERT's.
    reader: Any = BertTokenizer if "auto_map" in kind else AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder}: the tokenizer cannot be read",
            found=type(error).__name__,
            fix="take tokenizer.json or vocab.txt from its source again",
        ) from None
    if len(tokenizer) > vocabulary or tokenizer.pad_token_id is None:
        raise WeightsError(
            f"{folder}: the tokenizer is not the one of these weights",
            found=f"{len(tokenizer)} words, the weights know {vocabulary}",
            fix="take both from the same source",
        )

    def tokenize(texts: Sequence[str], length: int) -> Tokens:
        kept = [text for text in texts if text.strip()]
        rows = iter(tokenizer(kept, truncation=True, max_length=length)["input_ids"] if kept else ())
        return pad([next(rows) if text.strip() else () for text in texts], tokenizer.pad_token_id)

    return tokenize
