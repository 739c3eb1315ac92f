"""Words become ids without a vocabulary: the same on every machine, padded, cut, and missing when blank."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.model.text.tokens import pad
from common.model.text.words import (
    BREAK,
    BUCKETS,
    CLS,
    PAD,
    SPECIAL,
    VOCABULARY,
    hash_words,
    tokenize_words,
)


def test_ids_are_crc32_buckets_behind_the_special_ones() -> None:
    bucket = SPECIAL + zlib.crc32(b"effusion") % BUCKETS
    assert hash_words("Effusion") == [CLS, bucket]
    assert hash_words("effusion. Effusion") == [CLS, bucket, BREAK, bucket]


def test_case_and_blanks_do_not_matter_and_words_do() -> None:
    assert hash_words("NO  Edema") == hash_words("no edema") != hash_words("new edema")
    assert hash_words("67-year-old") == hash_words("67 year old")
    assert hash_words("Erguß") != hash_words("Ergu")


@given(st.lists(st.text(max_size=40), max_size=6), st.integers(1, 12))
def test_any_text_has_tokens_unless_it_is_blank(texts: list[str], length: int) -> None:
    tokens = tokenize_words(texts, length)
    assert tokens.ids.shape == tokens.mask.shape
    assert 1 <= tokens.ids.shape[1] <= length
    assert tokens.missing.tolist() == [not text.strip() for text in texts]
    assert ((tokens.ids >= 0) & (tokens.ids < VOCABULARY)).all()
    assert (tokens.ids[~tokens.mask] == PAD).all()
    assert (tokens.ids[tokens.mask] != PAD).all()
    for row, text in enumerate(texts):
        assert tokens.ids[row][tokens.mask[row]].tolist() == hash_words(text)[:length]


def test_rows_are_taken_in_the_order_asked_for() -> None:
    tokens = pad([[7, 8], [], [9]], PAD)
    taken = tokens.take(np.array([2, 0]))
    assert taken.ids.tolist() == [[9, PAD], [7, 8]]
    assert taken.mask.tolist() == [[True, False], [True, True]]
    assert len(taken) == 2


def test_no_text_at_all_has_a_shape() -> None:
    assert tokenize_words([], 8).ids.shape == (0, 1)
