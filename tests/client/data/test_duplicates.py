"""The same picture twice: near hashes found without comparing all with all, and judged on the pixels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from client.data import duplicates
from client.data.duplicates import NEAR_BITS, find_duplicates, near_pairs, same_image
from client.data.facts import Facts


def flip(value: str, bits: list[int]) -> str:
    number = int(value, 16)
    for bit in bits:
        number ^= 1 << bit
    return f"{number:064x}"


@pytest.mark.parametrize("block", [3, 256])
@pytest.mark.parametrize("few", [0, 4096])
def test_near_pairs_are_those_of_comparing_all_with_all(
    block: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(duplicates, "_FEW", few)
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(32).hex() for _ in range(60)]
    for i in range(0, 40, 2):  # copies that differ in 0 to 39 bits, on both sides of the limit
        hashes.append(flip(hashes[i], rng.permutation(256)[:i].tolist()))
    numbers = [int(value, 16) for value in hashes]
    expected = {
        (i, j) for i, j in combinations(range(len(hashes)), 2)
        if (numbers[i] ^ numbers[j]).bit_count() <= NEAR_BITS
    }  # fmt: skip
    found = list(near_pairs(hashes))
    assert set(found) == expected
    assert len(found) == len(expected) == 13


def test_no_hash_and_one_hash() -> None:
    assert list(near_pairs([])) == list(near_pairs(["0" * 64])) == []


@pytest.mark.parametrize(
    ("patients", "labels", "expected"),
    [
        (["a", "a"], [[1, 0], [1, 0]], ["", "duplicate"]),
        (["a", "a"], [[1, np.nan], [np.nan, 0]], ["", "duplicate"]),
        (["a", "a"], [[1, 0], [1, 1]], ["conflict", "conflict"]),
        (["a", "b"], [[1, 0], [1, 0]], ["conflict", "conflict"]),
        (["a", "a"], [[], []], ["", "duplicate"]),
    ],
)
def test_rows_of_one_image(patients: list[str], labels: list[list[float]], expected: list[str]) -> None:
    got = same_image(np.array(patients), np.array(labels, np.float32).reshape(len(patients), -1))
    assert got.tolist() == expected


def test_what_is_compared() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 16, 16)).astype(np.uint8)
    pixels[1] = np.clip(pixels[0] * 0.8 + 3, 0, 255)
    near = flip("a" * 64, [3, 77])
    facts = [
        Facts(sha256="0", phash="a" * 64),
        Facts(sha256="1", phash=near),  # the first, darker, under another patient
        Facts(sha256="2", phash=near),  # a near hash, another picture
        Facts(sha256="3", instance="1.2"),
        Facts(sha256="4", instance="1.2"),  # one instance, of two patients
        Facts(sha256="5", phash="a" * 64),  # the first patient again: may look alike
    ]
    pixels[5] = pixels[0]
    patients = np.array(["p", "q", "r", "s", "t", "p"])
    codes = find_duplicates(facts, patients, np.full((6, 1), np.nan, np.float32), pixels)
    assert codes.tolist() == ["", "near-duplicate", "", "conflict", "conflict", ""]


def test_flat_pictures_are_alike_to_none() -> None:
    facts = [Facts(sha256=str(i), phash="0" * 64) for i in range(2)]
    flat = np.zeros((2, 8, 8), np.uint8)
    assert find_duplicates(facts, np.array(["a", "b"]), np.zeros((2, 1), np.float32), flat).tolist() == [
        "",
        "",
    ]
