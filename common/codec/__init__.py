"""Number formats an update can travel in.

``fp32`` and ``fp16`` are arrays of that type. ``int8`` and ``topk`` are flat ``uint8``:

    kind (1 byte) | numbers meant (4 bytes, little-endian) | body, deflated where the plan says so

The body of ``int8`` is blocks of 64 values (`common.codec.blocks`), that of ``topk`` the positions of the
largest values (`common.codec.positions`) and those values in the same blocks. Whoever reads says how many
numbers there may be before any memory is taken for them; what does not fit is a SchemaError.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.codec.blocks import block_bytes, pack_blocks, unpack_blocks
from common.codec.positions import largest, most_position_bytes, pack_positions, unpack_positions
from common.errors import SchemaError
from common.sections import WireConfig

DTYPES: Mapping[str, Any] = {"fp32": np.float32, "fp16": np.float16, "int8": np.uint8, "topk": np.uint8}
"""Codec -> type of the array that travels."""

_HEADER = struct.Struct("<BI")
_COUNT = struct.Struct("<I")
_KINDS: Mapping[str, int] = {"int8": 1, "topk": 2}
_LEVEL = 6
"""Of zlib: higher ones take three times as long for a thousandth of the bytes."""

Bytes = NDArray[np.uint8]
Flat = NDArray[np.float32]


def encode(values: Flat, wire: WireConfig) -> NDArray[Any]:
    """Write a flat update ``[numel]`` by the plan's codec.

    A value that is NaN or infinite, or becomes so, is told as that: whoever reads refuses the update.
    """
    if wire.codec == "fp32" or wire.codec == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(DTYPES[wire.codec])
    body = pack_blocks(values) if wire.codec == "int8" else _pack_largest(values, wire.keep)
    if wire.entropy:
        body = zlib.compress(body, _LEVEL)
    return np.frombuffer(_HEADER.pack(_KINDS[wire.codec], values.size) + body, dtype=np.uint8)


def decode(update: NDArray[Any], wire: WireConfig, most: int) -> Flat:
    """Return what an update of at most ``most`` numbers means, as fp32 ``[numel]``.

    The numbers may be NaN or infinite: that is for the reader to refuse. A plan of ``topk`` also takes
    ``int8``, in which whole models travel (`for_models`).

    Raises:
        SchemaError: if it is not what ``encode`` writes under this plan, or is of more numbers.
    """
    if update.dtype != DTYPES[wire.codec]:
        raise SchemaError(
            "the update has another number format than the plan's codec",
            found=f"{update.dtype}, expected {wire.codec}",
        )
    if update.ndim != 1:
        raise SchemaError("the update is not one flat array", found=f"{update.ndim} dimensions")
    if update.dtype != np.uint8:
        _check_count(update.size, most)
        return update.astype(np.float32)
    data = np.ascontiguousarray(update)
    if data.size < _HEADER.size:
        raise SchemaError("the update ends before it says what it holds", found=f"{data.size} bytes")
    kind, numel = _HEADER.unpack(data[: _HEADER.size].tobytes())
    _check_count(numel, most)
    codec = next((name for name, number in _KINDS.items() if number == kind), "")
    if codec != wire.codec and not (wire.codec == "topk" and codec == "int8"):
        raise SchemaError("the update is of another codec than the plan's", found=f"kind {kind}")
    limit = _most_body(numel, codec, wire.keep)
    body = _inflated(data[_HEADER.size :], limit) if wire.entropy else data[_HEADER.size :]
    if body.size > limit:
        raise SchemaError("the update has more bytes than its numbers take", found=f"{body.size} bytes")
    return unpack_blocks(body, numel) if codec == "int8" else _unpack_largest(body, numel, wire.keep)


def for_models(wire: WireConfig) -> WireConfig:
    """Return how a whole model travels that is sent once: all of it, and nothing made up for later."""
    return wire.model_copy(update={"codec": "int8"}) if wire.codec == "topk" else wire


def downward(wire: WireConfig) -> WireConfig:
    """Return how the change of a round travels down to the sites."""
    return WireConfig(codec=wire.downlink, feedback=wire.feedback)


def adapter_digest(flat: NDArray[Any]) -> str:
    """Return the SHA-256 of a flat adapter, by which both sides name it."""
    return hashlib.sha256(np.ascontiguousarray(flat, dtype="<f4").data).hexdigest()


def most_bytes(numel: int, wire: WireConfig) -> int:
    """Return how many bytes an update of so many numbers takes at most.

    >>> [most_bytes(2_370_062, WireConfig(codec=codec)) for codec in ("fp32", "fp16", "int8", "topk")]
    [9480248, 4740124, 2407104, 49408]
    """
    if wire.codec not in _KINDS:
        return numel * np.dtype(DTYPES[wire.codec]).itemsize
    body = _most_body(numel, wire.codec, wire.keep)
    # zlib's own bound for what cannot be compressed (deflateBound), rounded up
    return _HEADER.size + (body + (body >> 8) + 64 if wire.entropy else body)


def _check_count(numel: int, most: int) -> None:
    if numel > most:
        raise SchemaError("the update holds more numbers than it may", found=f"{numel}, expected {most}")


def _most_body(numel: int, codec: str, keep: float) -> int:
    if codec == "int8":
        return block_bytes(numel)
    count = _kept(numel, keep)
    return _COUNT.size + block_bytes(count) + most_position_bytes(count, numel)


def _kept(numel: int, keep: float) -> int:
    return min(numel, max(1, math.ceil(keep * numel)))


def _pack_largest(values: Flat, keep: float) -> bytes:
    if not np.isfinite(values).all():
        return _COUNT.pack(0) + pack_blocks(np.array([], dtype=np.float32), np.float32(np.nan))
    chosen = largest(values, _kept(values.size, keep))
    kept = _COUNT.pack(len(chosen)) + pack_blocks(values[chosen])
    return kept + pack_positions(chosen) if len(chosen) else kept


def _unpack_largest(body: Bytes, numel: int, keep: float) -> Flat:
    """Put kept values back in their places among zeros."""
    if body.size < _COUNT.size:
        raise SchemaError("the update ends before it says how many values it keeps")
    (count,) = _COUNT.unpack(body[: _COUNT.size].tobytes())
    if count > _kept(numel, keep):
        raise SchemaError("the update keeps more values than wire.keep allows", found=str(count))
    end = _COUNT.size + block_bytes(count)
    if not count:
        unpack_blocks(body[_COUNT.size :], 0)
        lost = np.isnan(np.frombuffer(body[_COUNT.size : end].tobytes()[:4], dtype="<f4")[0])
        return np.full(numel, np.nan if lost else 0.0, dtype=np.float32)
    values = unpack_blocks(body[_COUNT.size : end], count)
    whole = np.zeros(numel, dtype=np.float32)
    whole[unpack_positions(body[end:], count, numel)] = values
    return whole


def _inflated(data: Bytes, limit: int) -> Bytes:
    """Inflate to at most ``limit`` bytes: whatever else it would become is never in memory."""
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(data.tobytes(), limit + 1)
    except zlib.error:
        raise SchemaError("the update cannot be inflated") from None
    if len(body) > limit or not inflater.eof or inflater.unused_data:
        raise SchemaError("the update is not one deflated body, or larger than its numbers are")
    return np.frombuffer(body, dtype=np.uint8)
