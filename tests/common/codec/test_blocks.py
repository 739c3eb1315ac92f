"""Values in 8 bits with a scale per 64: no value errs by more than half a step of its own block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.codec.blocks import BLOCK, block_bytes, pack_blocks, unpack_blocks
from common.errors import SchemaError

values = arrays(np.float32, st.integers(0, 300), elements=st.floats(-1e4, 1e4, width=32))


def bytes_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8).copy()


def through(x: np.ndarray) -> np.ndarray:
    return unpack_blocks(bytes_of(pack_blocks(x)), x.size)


@given(values)
def test_each_block_errs_by_its_own_size(x):
    """Half a step of a bound at most a sixteenth of an octave above the block's largest value."""
    data = pack_blocks(x)
    assert len(data) == block_bytes(x.size)
    back = unpack_blocks(bytes_of(data), x.size)
    largest = float(np.abs(x).max(initial=0))
    for start in range(0, x.size, BLOCK):
        own, read = x[start : start + BLOCK].astype(np.float64), back[start : start + BLOCK]
        bound = max(float(np.abs(own).max()) * 2 ** (1 / 16), largest * 2 ** (-254 / 16))
        assert (np.abs(own - read) <= bound / 127 / 2 * (1 + 1e-5)).all()


def test_a_quiet_block_is_as_fine_as_a_loud_one():
    """One scale for all would lose the quiet values: they lie below its first step."""
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    x[: 4096 - BLOCK] *= 1e-3
    quiet = slice(0, 4096 - BLOCK)
    errs = np.linalg.norm(through(x)[quiet] - x[quiet]) / np.linalg.norm(x[quiet])
    step = np.abs(x).max() / 127
    alone = np.linalg.norm(np.rint(x / step)[quiet] * step - x[quiet]) / np.linalg.norm(x[quiet])
    assert errs < 0.01 < alone


@given(values)
def test_a_second_passage_changes_almost_nothing(x):
    once = through(x)
    assert np.allclose(through(once), once, rtol=0.02, atol=np.abs(x).max(initial=0) / 100)


def test_the_smallest_numbers_there_are():
    x = np.array([1e-45, -1e-44, 0.0, 1e-38], dtype=np.float32)
    assert np.isfinite(through(x)).all()


HONEST = np.linspace(-1, 1, 100, dtype=np.float32)


def spoilt(at: int | slice, value: int | bytes) -> np.ndarray:
    data = bytes_of(pack_blocks(HONEST))
    data[at] = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
    return data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes_of(pack_blocks(HONEST))[:-1], id="short"),
        pytest.param(np.append(bytes_of(pack_blocks(HONEST)), np.uint8(0)), id="long"),
        pytest.param(spoilt(slice(0, 4), np.array(-1.0, "<f4").tobytes()), id="negative scale"),
        pytest.param(spoilt(slice(0, 4), np.array(-0.0, "<f4").tobytes()), id="minus zero"),
        pytest.param(spoilt(slice(0, 4), np.array(np.inf, "<f4").tobytes()), id="infinite scale"),
        pytest.param(spoilt(4, 0), id="values in an empty block"),
        pytest.param(spoilt(10, 128), id="-128"),
    ],
)
def test_what_is_not_written_is_not_read(data):
    with pytest.raises(SchemaError):
        unpack_blocks(data, HONEST.size)
