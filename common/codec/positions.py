"""Which values of a long vector are sent: their positions as sorted gaps, in about 8 bits each.

A gap is written by the code of Rice (1979): its low bits as they are, the rest as that many zeros and a one.
The two parts of all gaps lie in streams of their own, so both are written and read without a loop:

    bits in the low part (1 byte) | low parts, packed | zeros and ones, packed

Of random positions, one in a hundred, this takes 8.1 bits each; no code takes less than 8.07.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.errors import SchemaError

_WIDEST = 31

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


def largest(values: NDArray[np.float32], count: int) -> Places:
    """Return the sorted positions of the ``count`` largest values by size; of equals the first, no zeros.

    >>> largest(np.array([0.5, -3.0, 0.0, 2.0, 0.5], dtype=np.float32), 3).tolist()
    [0, 1, 3]
    """
    size = np.abs(values)
    count = min(count, int(np.count_nonzero(size)))
    if not count:
        return np.zeros(0, dtype=np.int64)
    threshold = np.partition(size, size.size - count)[size.size - count]
    above, equal = np.flatnonzero(size > threshold), np.flatnonzero(size == threshold)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def most_position_bytes(count: int, numel: int) -> int:
    """Return how many bytes the positions of ``count`` of ``numel`` values take at most."""
    # The high parts of all gaps together are at most (numel - count) >> width, and a one each.
    return min(_bytes(count, width, (numel - count) >> width) for width in range(_WIDEST + 1))


def pack_positions(positions: Places) -> bytes:
    """Write sorted positions, at least one, in as few bytes as this code can."""
    gaps = np.diff(positions, prepend=-1) - 1
    width = min(range(_WIDEST + 1), key=lambda w: _bytes(len(gaps), w, int((gaps >> w).sum())))
    low = (gaps[:, None] >> np.arange(width)) & 1
    ends = np.cumsum((gaps >> width) + 1) - 1
    high = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    high[ends] = 1
    return bytes([width]) + np.packbits(low.astype(np.uint8)).tobytes() + np.packbits(high).tobytes()


def unpack_positions(data: Bytes, count: int, numel: int) -> Places:
    """Return the ``count`` sorted positions below ``numel``, at least one, that ``pack_positions`` wrote.

    Raises:
        SchemaError: if these are not bytes that it writes.
    """
    width = int(data[0]) if data.size else _WIDEST + 1
    if width > _WIDEST:
        raise SchemaError("the positions of an update's values are not there")
    low_end = 1 + -(-count * width // 8)
    most = 1 + -(-count * width // 8) + -(-(((numel - count) >> width) + count) // 8)
    if not low_end < data.size <= most:
        raise SchemaError("the positions of an update's values have another number of bytes than they take")
    bits = np.unpackbits(data[1:low_end])
    low = bits[: count * width].reshape(count, width).astype(np.int64) @ (1 << np.arange(width))
    high = np.unpackbits(data[low_end:])
    ones = np.flatnonzero(high)
    padded = bits[count * width :].any() or (len(ones) and high.size - ones[-1] > 8)
    if len(ones) != count or padded:
        raise SchemaError("the positions of an update's values are not as many as the values")
    gaps = ((np.diff(ones, prepend=-1) - 1) << width) | low
    positions = np.cumsum(gaps + 1) - 1
    if positions[-1] >= numel:
        raise SchemaError("a value of an update lies beyond its end")
    return positions


def _bytes(count: int, width: int, high: int) -> int:
    return 1 + -(-count * width // 8) + -(-(high + count) // 8)
