from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.text.phrases import Match, compile_lists, compile_phrases, find, fold


@given(st.text())
def test_folding_keeps_every_character_in_its_place(text: str) -> None:
    folded = fold(text)
    assert len(folded) == len(text)
    assert folded == fold(folded)
    assert all(a == b or a.lower() == b for a, b in zip(text, folded, strict=True))


@pytest.mark.parametrize(
    "text",
    ["pleural effusion", "pleural  effusion", "pleural\n  effusion", "pleural-effusion", "pleural_effusion"],
)
def test_a_blank_is_any_gap(text: str) -> None:
    assert compile_phrases(["pleural effusion"]).fullmatch(text)


@pytest.mark.parametrize("text", ["pleural. effusion", "pleuraleffusion", "pleural, effusion"])
def test_no_phrase_goes_beyond_punctuation(text: str) -> None:
    assert not compile_phrases(["pleural effusion"]).search(text)


def test_linking_words_are_bounded_and_known() -> None:
    pattern = compile_phrases(["heart ~ enlarged"])
    assert pattern.fullmatch("heart size is again mildly enlarged")
    assert pattern.fullmatch("heart enlarged")
    assert not pattern.search("heart normal and aorta enlarged")
    assert not pattern.search("heart " + "is " * 7 + "enlarged")


def test_stems_match_whole_words_and_the_longest_phrase_wins() -> None:
    pattern = compile_phrases(["no", "no longer", "opaci*", "*thorax"])
    assert [m[0] for m in pattern.finditer("no longer opacified, nothing; hydropneumothorax")] == [
        "no longer", "opacified", "hydropneumothorax",
    ]  # fmt: skip


def test_matches_of_several_lists_come_in_the_order_of_the_text() -> None:
    patterns = compile_lists({"b": ["heart"], "a": ["enlarged heart"]})
    assert find(patterns, "an enlarged heart") == [Match(3, 17, "a"), Match(12, 17, "b")]
    assert Match(3, 17, "a").overlaps(Match(12, 17, "b"))
    assert not Match(0, 3, "a").overlaps(Match(3, 5, "b"))


def test_a_cell_that_is_no_prose_costs_little() -> None:
    patterns = compile_lists({"x": ["*calcif*", "opaci*"]})
    assert find(patterns, "a" * 200_000) == []
