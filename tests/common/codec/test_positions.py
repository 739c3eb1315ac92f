"""Positions as gaps: every set comes back, in about as few bytes as any code could take."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec.positions import largest, most_position_bytes, pack_positions, unpack_positions
from common.errors import SchemaError

sets = st.integers(1, 5000).flatmap(
    lambda numel: st.tuples(st.just(numel), st.sets(st.integers(0, numel - 1), min_size=1, max_size=80))
)


def bytes_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@given(sets)
def test_there_and_back_is_the_identity(drawn):
    numel, chosen = drawn
    positions = np.array(sorted(chosen), dtype=np.int64)
    data = pack_positions(positions)
    assert len(data) <= most_position_bytes(len(positions), numel)
    assert unpack_positions(bytes_of(data), len(positions), numel).tolist() == positions.tolist()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.02, 0.1, 0.5])
def test_random_positions_take_little_more_than_their_entropy(share):
    numel = 500_000
    positions = np.flatnonzero(np.random.default_rng(0).random(numel) < share)
    found = len(positions) / numel
    entropy = -(math.log2(found) * found + math.log2(1 - found) * (1 - found)) * numel / 8
    assert 0.99 * entropy < len(pack_positions(positions)) < 1.06 * entropy + 8


@given(st.binary(max_size=60), st.integers(1, 40), st.integers(40, 400))
def test_whatever_bytes_come_it_is_a_coded_error_or_positions(data, count, numel):
    try:
        positions = unpack_positions(bytes_of(data), count, numel)
    except SchemaError:
        return
    assert len(positions) == count
    assert positions[0] >= 0 and positions[-1] < numel and (np.diff(positions) > 0).all()


@given(sets, st.integers(0, 4999))
def test_the_largest_are_those_numpy_sorts_first(drawn, seed):
    numel, chosen = drawn
    values = np.random.default_rng(seed).integers(-3, 4, numel).astype(np.float32)
    order = np.argsort(-np.abs(values), kind="stable")
    kept = [i for i in order[: len(chosen)].tolist() if values[i]]
    assert largest(values, len(chosen)).tolist() == sorted(kept)
