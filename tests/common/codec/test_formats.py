"""What each codec writes, how many bytes it takes, and that nothing but that is read."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.codec import DTYPES, decode, encode, for_models, most_bytes
from common.errors import SchemaError
from common.sections import WireConfig

ALL = [
    *(WireConfig(codec=codec) for codec in ("fp32", "fp16", "int8", "topk")),
    *(WireConfig(codec=codec, entropy=True) for codec in ("int8", "topk")),
    WireConfig(codec="topk", keep=0.5),
]
NAMES = [f"{w.codec}{' deflated' if w.entropy else ''} {w.keep}" for w in ALL]
PACKED = [(wire, name) for wire, name in zip(ALL, NAMES, strict=True) if wire.codec in ("int8", "topk")]

deltas = arrays(np.float32, st.integers(0, 200), elements=st.floats(-100, 100, width=32))


def gaussian(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def error(wire: WireConfig, values: np.ndarray) -> float:
    back = decode(encode(values, wire), wire, values.size)
    return float(np.linalg.norm(back - values) / np.linalg.norm(values))


@given(deltas)
def test_fp32_is_the_identity(delta):
    encoded = encode(delta, WireConfig(codec="fp32"))
    assert encoded.dtype == np.float32
    assert encoded.tobytes() == delta.tobytes()


@given(deltas)
def test_fp16_is_the_nearest_half(delta):
    """Eleven significant bits: half a unit in the last place, or half the smallest subnormal."""
    encoded = encode(delta, WireConfig(codec="fp16"))
    assert encoded.dtype == np.float16
    off = np.abs(encoded.astype(np.float64) - delta)
    assert (off <= np.maximum(np.abs(delta.astype(np.float64)) * 2**-11, 2**-25)).all()


def test_every_codec_of_the_config_has_a_format():
    assert set(DTYPES) == set(WireConfig.model_fields["codec"].annotation.__args__)


@pytest.mark.parametrize("wire", ALL, ids=NAMES)
@given(delta=deltas)
def test_what_is_read_is_as_long_as_what_was_written_and_zero_stays_zero(wire, delta):
    encoded = encode(delta, wire)
    assert encoded.dtype == DTYPES[wire.codec]
    assert encoded.nbytes <= most_bytes(delta.size, wire)
    back = decode(encoded, wire, delta.size)
    assert back.dtype == np.float32
    assert back.shape == delta.shape
    assert (back[delta == 0] == 0).all()
    assert (back * delta >= 0).all()


@pytest.mark.parametrize(("codec", "limit"), [("fp16", 3e-4), ("int8", 0.0065)])
def test_the_error_on_gaussian_values(codec, limit):
    assert error(WireConfig(codec=codec), gaussian(100_000)) < limit


def test_int8_takes_3_9_times_fewer_bytes_than_fp32():
    for size in (1000, 33_413, 2_370_062):
        assert 4 * size >= 3.9 * most_bytes(size, WireConfig(codec="int8"))


def test_one_in_a_hundred_of_2_37_million_takes_under_100_kb():
    values, wire = gaussian(2_370_062), WireConfig(codec="topk")
    encoded = encode(values, wire)
    assert encoded.nbytes < 50_000
    kept = np.flatnonzero(decode(encoded, wire, values.size))
    largest = np.argsort(-np.abs(values), kind="stable")[:23_701]
    assert set(kept) == set(largest)
    assert encode(values, WireConfig(codec="topk", keep=0.02)).nbytes < 100_000


def test_what_is_deflated_means_the_same():
    values = gaussian(500_000)
    for codec in ("int8", "topk"):
        plain, packed = WireConfig(codec=codec), WireConfig(codec=codec, entropy=True)
        assert encode(values, packed).nbytes < encode(values, plain).nbytes
        both = [decode(encode(values, wire), wire, values.size) for wire in (plain, packed)]
        assert both[0].tobytes() == both[1].tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wire", ALL, ids=NAMES)
def test_what_is_not_finite_is_not_made_finite(wire, bad):
    values = gaussian(300)
    values[7] = bad
    assert not np.isfinite(decode(encode(values, wire), wire, values.size)).all()


def test_a_whole_model_is_not_cut_to_its_largest_values():
    values = gaussian(1000)
    for wire in ALL:
        whole = for_models(wire)
        back = decode(encode(values, whole), wire, values.size)
        assert np.linalg.norm(back - values) < 0.01 * np.linalg.norm(values)


# ---------------------------------------------------------------------- bytes that somebody else wrote


@pytest.mark.parametrize(("wire", "name"), PACKED, ids=[name for _, name in PACKED])
@settings(deadline=None)
@given(data=st.data())
def test_whatever_bytes_come_it_is_a_coded_error_or_an_update(wire, name, data):
    """From random bytes, and from honest ones that were cut, lengthened or changed."""
    honest = encode(gaussian(150), wire)
    kind = data.draw(st.sampled_from(["random", "cut", "longer", "changed"]))
    if kind == "random":
        bytes_ = np.frombuffer(data.draw(st.binary(max_size=300)), dtype=np.uint8)
    elif kind == "cut":
        bytes_ = honest[: data.draw(st.integers(0, honest.size - 1))]
    elif kind == "longer":
        bytes_ = np.concatenate([honest, np.frombuffer(data.draw(st.binary(min_size=1)), dtype=np.uint8)])
    else:
        bytes_ = honest.copy()
        bytes_[data.draw(st.integers(0, honest.size - 1))] = data.draw(st.integers(0, 255))
    try:
        back = decode(bytes_, wire, 150)
    except SchemaError:
        return
    assert kind in ("random", "changed")
    assert back.dtype == np.float32 and back.ndim == 1 and back.size <= 150


@pytest.mark.parametrize(("wire", "name"), PACKED, ids=[name for _, name in PACKED])
def test_more_numbers_than_allowed_are_refused_before_memory_is_taken(wire, name):
    encoded = encode(gaussian(150), wire)
    for most in (0, 149):
        with pytest.raises(SchemaError, match="more numbers"):
            decode(encoded, wire, most)
    huge = encoded.copy()
    huge[1:5] = 255
    with pytest.raises(SchemaError, match="more numbers"):
        decode(huge, wire, 10**6)


def test_a_bomb_is_not_inflated(monkeypatch):
    wire = WireConfig(codec="int8", entropy=True)
    header = encode(gaussian(150), wire)[:5]
    bomb = np.concatenate([header, np.frombuffer(zlib.compress(bytes(50_000_000)), dtype=np.uint8)])
    sizes = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self):
            self._real = real()

        def decompress(self, data, most):
            body = self._real.decompress(data, most)
            sizes.append(len(body))
            return body

        def __getattr__(self, name):
            return getattr(self._real, name)

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(SchemaError, match="deflated"):
        decode(bomb, wire, 150)
    assert sizes and max(sizes) < 1000


@pytest.mark.parametrize("wire", ALL, ids=NAMES)
def test_another_kind_of_array_is_refused(wire):
    honest = encode(gaussian(150), wire)
    other = np.float32 if honest.dtype != np.float32 else np.float64
    for wrong in (honest.astype(other), honest.astype(honest.dtype.newbyteorder()) if wire.codec[0] == "f"
                  else honest.astype(np.int8), honest.reshape(1, -1), honest[:1].reshape(())):  # fmt: skip
        with pytest.raises(SchemaError):
            decode(wrong, wire, 150)


def test_a_codec_is_not_taken_for_another():
    values = gaussian(150)
    with pytest.raises(SchemaError, match="another codec"):
        decode(encode(values, WireConfig(codec="topk")), WireConfig(codec="int8"), 150)


def test_more_than_the_plan_s_share_is_refused():
    values = gaussian(1000)
    with pytest.raises(SchemaError):
        decode(encode(values, WireConfig(codec="topk", keep=0.05)), WireConfig(codec="topk", keep=0.01), 1000)


def test_there_is_nothing_to_deflate_in_floats():
    with pytest.raises(ValueError, match="entropy"):
        WireConfig(codec="fp16", entropy=True)
