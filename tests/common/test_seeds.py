"""Generators from a seed and names."""

from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from common.seeds import derive, numpy_generator, torch_generator

parts = st.lists(st.one_of(st.text(alphabet="abc123/-", max_size=5), st.integers(0, 99)), max_size=3)


@given(st.integers(0, 2**31 - 1), parts)
def test_a_seed_fits_both_libraries_and_repeats(seed, names):
    value = derive(seed, *names)
    assert 0 <= value < 2**63
    assert value == derive(seed, *names)
    assert torch_generator(seed, *names).initial_seed() == value
    assert numpy_generator(seed, *names).random() == numpy_generator(seed, *names).random()


@given(st.integers(0, 1000), parts, st.integers(0, 1000), parts)
def test_another_purpose_is_another_seed(seed, names, other_seed, other_names):
    def key(seed, names):
        return (seed, tuple(str(n) for n in names))

    same = key(seed, names) == key(other_seed, other_names)
    assert (derive(seed, *names) == derive(other_seed, *other_names)) == same


def test_the_definition_by_hand():
    """The same on every machine: BLAKE2b over the parts, 63 bits, big-endian."""
    digest = hashlib.blake2b(b"3\0order\0north\x001", digest_size=8).digest()
    assert derive(3, "order", "north", 1) == int.from_bytes(digest, "big") >> 1


def test_global_generators_are_left_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        torch.rand(1, generator=torch_generator(5, "x"))
        assert torch.equal(torch.rand(1), expected)
