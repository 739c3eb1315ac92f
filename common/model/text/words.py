"""Words as token ids by a stable hash: no vocabulary to ship, and no word is unknown."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

from common.model.text.tokens import Tokens, pad

PAD, CLS, MASK, BREAK = range(4)
"""Padding; the first token of a text; a hidden word; the end of a clause, which ends a denial."""
SPECIAL = 4
BUCKETS = 8192
VOCABULARY = SPECIAL + BUCKETS

_PIECE = re.compile(r"[^\W\d_]+|\d+|[.,;:!?]")


@lru_cache(maxsize=2**16)
def _word(piece: str) -> int:
    if not piece.isalnum():
        return BREAK
    return SPECIAL + zlib.crc32(piece.encode()) % BUCKETS


def hash_words(text: str) -> list[int]:
    """Return the ids of a text's words, numbers and clause ends, after ``CLS``; a blank text has none.

    >>> hash_words("No effusion.") == hash_words("no EFFUSION .")
    True
    >>> hash_words(" ")
    []
    """
    if not text.strip():
        return []
    return [CLS, *(_word(piece) for piece in _PIECE.findall(text.lower()))]


def tokenize_words(texts: Sequence[str], length: int) -> Tokens:
    """Return the first ``length`` tokens of each text."""
    return pad([hash_words(text)[:length] for text in texts], PAD)
