"""The adapter as one flat vector, as bytes, and with its residual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter import AdapterSchema, AdapterState, Factors, schema_of
from common.errors import SchemaError

names = st.from_regex(r"[a-z]{1,4}(\.[a-z0-9]{1,4}){0,2}", fullmatch=True)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
schemas = st.dictionaries(names, shapes, max_size=5).map(lambda d: AdapterSchema(tuple(d.items())))


@st.composite
def adapters(draw):
    """A schema with tensors that fit it, any fp32 value in them."""
    schema = draw(schemas)
    values = st.floats(width=32, allow_nan=False)
    flat = draw(st.lists(values, min_size=schema.numel, max_size=schema.numel))
    vector = np.array(flat, dtype=np.float32)
    return schema, vector


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@settings(deadline=None)
@given(adapters())
def test_unpack_then_pack_is_the_identity(case):
    schema, vector = case
    packed = schema.pack(schema.unpack(vector))
    assert packed.dtype == np.float32
    assert packed.tobytes() == vector.tobytes()


@settings(deadline=None)
@given(adapters())
def test_pack_then_unpack_is_the_identity(case):
    schema, vector = case
    tensors = schema.unpack(vector)
    assert same(schema.unpack(schema.pack(tensors)), tensors)
    shuffled = dict(reversed(tensors.items()))
    assert same(schema.unpack(schema.pack(shuffled)), tensors)


def test_wire_order_is_the_schema_s():
    schema = AdapterSchema((("b", (2,)), ("a", (1, 2))))
    packed = schema.pack({"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([1.0, 2.0])})
    assert packed.tolist() == [1, 2, 3, 4]


def test_unpacked_tensors_share_nothing():
    schema = AdapterSchema((("a", (2,)), ("b", (2,))))
    vector = np.zeros(4, dtype=np.float32)
    tensors = schema.unpack(vector)
    tensors["a"] += 1
    assert not vector.any() and not tensors["b"].any()


def test_half_precision_comes_back_as_fp32():
    tensors = AdapterSchema((("a", (2,)),)).unpack(np.array([0.5, 2.0], dtype=np.float16))
    assert tensors["a"].dtype == torch.float32
    assert tensors["a"].tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": torch.zeros(2)}, "1 missing, 0 unexpected"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "0 missing, 1 unexpected"),
        ({"a": torch.zeros(2), "c": torch.zeros(3)}, "1 missing, 1 unexpected"),
        ({"a": torch.zeros(2), "b": torch.zeros(1, 3)}, r"(1, 3), expected (3,)"),
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, r"(4,), expected (3,)"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(tensors, words):
    schema = AdapterSchema((("a", (2,)), ("b", (3,))))
    with pytest.raises(SchemaError) as caught:
        schema.pack(tensors)
    assert caught.value.found == words


@pytest.mark.parametrize("shape", [(0,), (4,), (6,), (5, 1), (1, 5), ()])
def test_a_vector_of_another_shape_is_refused(shape):
    schema = AdapterSchema((("a", (2,)), ("b", (3,))))
    with pytest.raises(SchemaError, match=r"expected \(5,\)"):
        schema.unpack(np.zeros(shape, dtype=np.float32))


def test_select_keeps_order_and_head():
    schema = AdapterSchema((("a", (1,)), ("h", (2, 1)), ("b", (3,))), ("h",))
    assert schema.select(["b", "h"]).names == ("h", "b")
    assert schema.select(["b", "h"]).head == ("h",)
    assert schema.select(["b"]).head == ()
    assert schema.select([]).numel == 0
    assert schema.select(["a", "nothing"]).names == ("a",)


def state_with_residual() -> AdapterState:
    tensors = {"blocks.0.fc1.lora_A.weight": torch.randn(2, 3), "head.bias": torch.randn(4)}
    residual = {
        "blocks.0.fc1": Factors(torch.randn(5, 2), torch.randn(2, 3)),
        "blocks.1.attn.qkv.q": Factors(torch.randn(6, 1), torch.randn(1, 3)),
    }
    return AdapterState(tensors, residual)


def equal(a: AdapterState, b: AdapterState) -> bool:
    return (
        same(a.tensors, b.tensors)
        and a.residual.keys() == b.residual.keys()
        and all(
            torch.equal(a.residual[n].left, b.residual[n].left)
            and torch.equal(a.residual[n].right, b.residual[n].right)
            for n in a.residual
        )
    )


def test_bytes_there_and_back():
    state = state_with_residual()
    assert equal(AdapterState.from_bytes(state.to_bytes()), state)
    assert equal(AdapterState.from_bytes(state.to_bytes({"plan": "x"})), state)
    bare = AdapterState(state.tensors, {})
    assert equal(AdapterState.from_bytes(bare.to_bytes()), bare)


def test_what_is_not_contiguous_is_written_as_it_reads():
    state = AdapterState({"a": torch.arange(6.0).reshape(2, 3).T}, {})
    assert equal(AdapterState.from_bytes(state.to_bytes()), state)


def test_a_residual_is_split_off_and_joined_again():
    state = state_with_residual()
    arrays = state.residual_arrays()
    assert set(arrays) == {
        f"residual:{layer}.{side}" for layer in state.residual for side in ("left", "right")
    }
    assert equal(AdapterState.join(state.tensors, arrays), state)
    assert AdapterState(state.tensors, {}).residual_arrays() == {}


def test_half_a_residual_is_refused():
    state = state_with_residual()
    arrays = state.residual_arrays()
    arrays.pop("residual:blocks.0.fc1.right")
    with pytest.raises(SchemaError):
        AdapterState.join(state.tensors, arrays)


def test_the_digest_sees_tensors_and_residual():
    state = state_with_residual()
    digests = {state.digest(), AdapterState(state.tensors, {}).digest()}
    layer, factors = next(iter(state.residual.items()))
    digests.add(
        AdapterState(
            state.tensors, state.residual | {layer: Factors(2 * factors.left, factors.right)}
        ).digest()
    )
    digests.add(state.plus({"head.bias": torch.ones(4)}).digest())
    assert len(digests) == 4
    assert AdapterState.from_bytes(state.to_bytes()).digest() == state.digest()


def test_plus_adds_what_is_named_and_leaves_the_rest():
    state = state_with_residual()
    before = state.digest()
    after = state.plus({"head.bias": torch.ones(4)})
    assert torch.equal(after.tensors["head.bias"], state.tensors["head.bias"] + 1)
    assert after.tensors["blocks.0.fc1.lora_A.weight"] is state.tensors["blocks.0.fc1.lora_A.weight"]
    assert after.residual is state.residual
    assert state.digest() == before


def test_schema_of_describes_in_order():
    schema = schema_of({"b": torch.zeros(2, 3), "a": torch.zeros(1)}, ["b"])
    assert schema.shapes == (("b", (2, 3)), ("a", (1,)))
    assert schema.head == ("b",)
    assert schema.numel == 7
