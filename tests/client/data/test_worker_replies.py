"""A reply of a worker that is not sound is not used, and costs the file alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.data.decoder_process import BrokenReply, Limits, check_head
from client.data.facts import Facts
from client.data.workers import Workers
from tests.client.data.decoding import read, same, stunts


def replying(reply: str) -> str:
    """Make a main program that answers for files named "bad" with the bytes of an expression."""
    return stunts(
        f"""
        import client.data.decoder as decoder, json, pickle, struct
        sound = decoder.answer

        def head(*facts):
            text = json.dumps(facts).encode()
            return struct.pack(">I", len(text)) + text

        def answer(index, path, **asked):
            right = sound(index, path, **asked)
            return {reply} if "bad" in path else right

        decoder.answer = answer
        """
    )


@pytest.mark.parametrize(
    "reply",
    ["pickle.dumps(right)", "head(index + 1, *[''] * 11) + bytes(32 * 32)"],
)
def test_a_reply_that_is_not_sound_is_not_used(make_pictures: Callable[..., list[Path]], reply: str) -> None:
    paths = make_pictures("a", "bad", *"cd")
    with Workers(1, main=replying(reply)) as workers:
        got = read(workers, paths)
    same(got, paths, ["", "crashed", "", ""])
    assert got[1] == (Facts(reason="crashed"), None)


@pytest.mark.parametrize("more", ["b'0'", "right"])
def test_what_comes_unasked_is_not_the_next_file(make_pictures: Callable[..., list[Path]], more: str) -> None:
    paths = make_pictures("a", "bad", *"cd")
    with Workers(1, main=replying(f"right + {more}")) as workers:
        same(read(workers, paths), paths, [""] * 4)


def test_a_reply_that_does_not_end_is_a_timeout(make_pictures: Callable[..., list[Path]]) -> None:
    paths = make_pictures("a", "bad")
    with Workers(1, Limits(seconds=0.8), main=replying("right[:-9]")) as workers:
        same(read(workers, paths), paths, ["", "timeout"])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff",
        b"{}",
        b"4",
        b"[]",
        b"[4]",
        b"[" * 5000,
        json.dumps([4, *[""] * 10]).encode(),
        json.dumps([3, *[""] * 11]).encode(),
        json.dumps([4, "duplicates", *[""] * 10]).encode(),
        json.dumps([4, "", "a\0b", *[""] * 9]).encode(),
        json.dumps([4, "", "\ud800", *[""] * 9]).encode(),
        json.dumps([4, *[""] * 9, "A" * 64, ""]).encode(),
        json.dumps([4, *[""] * 10, "0" * 63]).encode(),
    ],
)
def test_facts_that_are_none(head: bytes) -> None:
    with pytest.raises(BrokenReply):
        check_head(head, 4)
